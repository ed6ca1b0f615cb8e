"""Look at the attention of all layers of a LaViT, or of a plain vision transformer, while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from .lavit import LaViT, LessAttention, VanillaAttention
from .layout import Scores
from .plain_vit import (
    PlainLessAttention,
    compute_scores,
    count_extra_tokens,
    find_blocks,
    find_transformer,
    grid_of,
)


class Observed(NamedTuple):
    """Scores of one layer on some images.

    Args:
        name (str): The layer, such as ``stages.2.blocks.1``.
        less (bool): Whether it is a less-attention layer.
        scores (Tensor): Before softmax, (B, H, E + N, E + K): E extra tokens, then the cells of two grids.
        extra (int): E; 0 in a LaViT.
        grid (tuple[int, int]): Grid of the queries, h * w = N.
        key_grid (tuple[int, int]): Grid of the keys, of K cells.
    """

    name: str
    less: bool
    scores: Tensor
    extra: int
    grid: tuple[int, int]
    key_grid: tuple[int, int]


@contextmanager
def observe_attention(backbone: nn.Module, observer: Callable[[Observed], None]) -> Iterator[None]:
    """Have each attention layer of a backbone tell its scores.

    Args:
        backbone (nn.Module): A LaViT, whose scores are on the reference keys; a
            :class:`~mmlavit.models.plain_vit.WithLessAttention`; or a plain transformer of mmpretrain or timm.
        observer (Callable): Called in each forward with each layer, in their order.

    Raises:
        ConfigError: If it is another kind of backbone.
    """
    attach = _observe_lavit if isinstance(backbone, LaViT) else _observe_plain
    names = {module: name.removesuffix('.attn') for name, module in backbone.named_modules()}
    undo = list(attach(backbone, names, observer))
    try:
        yield
    finally:
        for function in undo:
            function()


def _observe_lavit(backbone: LaViT, names: dict, observer: Callable[[Observed], None]) -> Iterator[Callable]:
    def observe(attn: VanillaAttention | LessAttention, scores: Scores) -> None:
        by_heads = scores.map.unflatten(-1, (scores.heads, -1)).transpose(1, 2)  # (B, H, N, K)
        less = isinstance(attn, LessAttention)
        observer(Observed(names[attn], less, by_heads, 0, scores.grid, attn.reference_grid))

    yield partial(setattr, backbone, 'score_observer', backbone.score_observer)
    backbone.score_observer = observe
    for layer in backbone.modules():
        if isinstance(layer, VanillaAttention):
            yield partial(setattr, layer, 'keep_scores', layer.keep_scores)
            layer.keep_scores = True


def _observe_plain(backbone: nn.Module, names: dict, observer: Callable[[Observed], None]) -> Iterator[Callable]:
    transformer = find_transformer(backbone)
    blocks = find_blocks(transformer)
    extra = count_extra_tokens(transformer)
    grid = (0, 0)

    def find_grid(patch_embed: nn.Module, args: tuple, output: Any) -> None:
        nonlocal grid
        grid = grid_of(patch_embed, args[0].shape[-2:], output)

    def observe_vanilla(attn: nn.Module, qkv: nn.Module, args: tuple, output: Tensor) -> None:
        scores = compute_scores(attn, output, lambda keys: keys)
        observer(Observed(names[attn], False, scores, extra, grid, grid))

    def observe_less(attn: PlainLessAttention, args: tuple, output: Tensor) -> None:
        observer(Observed(names[attn], True, attn.last_scores(), extra, grid, attn.reference_grid))

    yield transformer.patch_embed.register_forward_hook(find_grid).remove
    for block in blocks:
        if isinstance(block.attn, PlainLessAttention):
            yield block.attn.register_forward_hook(observe_less).remove
        else:
            yield block.attn.qkv.register_forward_hook(partial(observe_vanilla, block.attn)).remove
