"""Cheaper networks that an experiment compares less attention with (ours): does what its layers do matter at all?"""

from __future__ import annotations

from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmlavit.errors import ConfigError
from mmlavit.models.lavit import LaViT, LessAttention, attend
from mmlavit.models.layout import Scores
from mmlavit.models.resample import resample_tokens

from .ablation import attend_uniformly


class SharedAttention(LessAttention):
    """The scores of the layer before as they are, without transforms.

    Made from a ``LessAttention`` by changing its class, so that all settings of the backbone stay: frozen stages,
    epsilons of norms.
    """

    unused = ('delta_theta', 'delta_psi')

    def forward(self, x: Tensor, scores: Scores) -> tuple[Tensor, Scores]:
        """Attend; shapes as for ``LessAttention``."""
        values = self.reduction(x, scores.grid)  # (B, M, C)
        values = resample_tokens(values, self.reduction.reduced_grid(scores.grid), self.reference_grid)
        return attend(scores, self.v(values), self.proj), scores


class UniformAttention(SharedAttention):
    """The mean of all values, for every query."""

    def forward(self, x: Tensor, scores: Scores) -> tuple[Tensor, Scores]:
        """Attend; shapes as for ``LessAttention``."""
        return attend_uniformly(self, x, scores.grid), scores


class NoAttention(SharedAttention):
    """Nothing: the feed-forward is all that is left of the block."""

    unused = (*SharedAttention.unused, 'v', 'proj', 'reduction')

    def forward(self, x: Tensor, scores: Scores) -> tuple[Tensor, Scores]:
        """Give zeros; shapes as for ``LessAttention``."""
        return torch.zeros_like(x), scores


CONTROLS = {'shared': SharedAttention, 'uniform': UniformAttention, 'none': NoAttention}


@MODELS.register_module()
class LaViTControl(LaViT):
    """LaViT with something cheaper in the place of less attention. For experiments.

    Args:
        *args (Any): As for ``LaViT``.
        later (str): What stands in the less-attention layers: 'shared', the scores of the layer before without
            transforms; 'uniform', the mean of all values; 'none', no attention.
        **kwargs (Any): As for ``LaViT``.

    Raises:
        ConfigError: If an argument is out of its range.
    """

    def __init__(self, *args: Any, later: str, **kwargs: Any) -> None:
        if later not in CONTROLS:
            raise ConfigError(f'later must be one of {", ".join(CONTROLS)}, got {later!r}')
        super().__init__(*args, **kwargs)
        for block in (block for stage in self.stages for block in stage.blocks):
            if isinstance(block.attn, LessAttention):
                block.attn.__class__ = CONTROLS[later]
                for name in CONTROLS[later].unused:
                    delattr(block.attn, name)
                if later == 'none':
                    block.norm1 = nn.Identity()
