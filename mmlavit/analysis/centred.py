"""A LaViT whose scores have no part that softmax takes away (ours, for experiments): does that part do harm?

A number that is added to all scores of a query changes nothing in its attention. But Theta mixes keys, so that a
less-attention layer turns it into differences between keys. It can be large: the bias of the keys adds one to each
query.
"""

from __future__ import annotations

from typing import Any

from mmengine.registry import MODELS
from torch import Tensor

from mmlavit.models.lavit import LaViT, LessAttention, VanillaAttention
from mmlavit.models.layout import Scores
from mmlavit.models.resample import Grid


class CentredVanillaAttention(VanillaAttention):
    """Vanilla attention that hands on scores whose mean over the keys is zero. Its own attention is what it was."""

    def _reference_scores(
        self, x: Tensor, query: Tensor | None, key: Tensor, grid: Grid, residual: Scores | None
    ) -> Scores:
        return super()._reference_scores(x, query, key - key.mean(dim=1, keepdim=True), grid, residual)


class CentredLessAttention(LessAttention):
    """``Psi A Theta^T`` with the columns of ``Theta - I`` centred, so that scores with a mean of zero keep it."""

    def key_mixing(self) -> Tensor:
        """``Theta - I`` of shape (K, K)."""
        return self.delta_theta - self.delta_theta.mean(dim=0, keepdim=True)


@MODELS.register_module()
class CentredLaViT(LaViT):
    """LaViT with such layers; the arguments and the names of all weights are those of ``LaViT``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        kinds = {VanillaAttention: CentredVanillaAttention, LessAttention: CentredLessAttention}
        for module in self.modules():
            module.__class__ = kinds.get(type(module), type(module))
