"""Look at the attention of all layers of a LaViT, or of a plain vision transformer, while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmlavit.errors import ConfigError

from .lavit import LaViT, LessAttention, VanillaAttention
from .layout import Scores
from .plain_vit import (
    PlainLessAttention,
    WithLessAttention,
    compute_scores,
    count_extra_tokens,
    find_blocks,
    find_transformer,
    grid_of,
)
from .resample import Grid, resample_tokens


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
def observe_attention(
    backbone: nn.Module, observer: Callable[[Observed], None], all_keys: bool = False
) -> Iterator[None]:
    """Have each attention layer of a backbone tell its scores.

    Args:
        backbone (nn.Module): A LaViT; a :class:`~mmlavit.models.plain_vit.WithLessAttention`; or a plain transformer of
            mmpretrain or timm.
        observer (Callable): Called in each forward with each layer, in their order. Meant for passes without gradient:
            with ``all_keys``, gradient checkpointing calls it again in the backward pass.
        all_keys (bool): What vanilla layers of a LaViT tell. False: their scores on the reference keys, which
            less-attention layers transform. True: those on all keys that they attend to, attention residual included.

    Raises:
        ConfigError: If it is another kind of backbone, or a control, most of which do not attend by their scores.
    """
    refuse_control(backbone, 'so its attention is not shown; look at the model that it is compared with')
    if isinstance(backbone, LaViT):
        attach = _observe_lavit_on_all_keys if all_keys else _observe_lavit
    else:
        attach = _observe_plain
    names = {module: name.removesuffix('.attn') for name, module in backbone.named_modules()}
    undo = list(attach(backbone, names, observer))
    try:
        yield
    finally:
        for function in undo:
            function()


def refuse_control(backbone: nn.Module, consequence: str) -> None:
    """Make sure that a backbone has less attention, and not what an experiment puts in its place.

    Args:
        backbone (nn.Module): Any backbone.
        consequence (str): What follows for the user, after a comma.

    Raises:
        ConfigError: If it is a control.
    """
    if isinstance(backbone, (LaViT, WithLessAttention)) and hasattr(backbone, 'later'):
        raise ConfigError(
            f'{type(backbone).__name__} has something else in the place of less attention (later={backbone.later!r}), '
            f'{consequence}'
        )


def _by_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, H * n) to (B, H, N, n)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _observe_lavit(backbone: LaViT, names: dict, observer: Callable[[Observed], None]) -> Iterator[Callable]:
    def observe(attn: VanillaAttention | LessAttention, scores: Scores) -> None:
        by_heads = _by_heads(scores.map, scores.heads)
        less = isinstance(attn, LessAttention)
        observer(Observed(names[attn], less, by_heads, 0, scores.grid, attn.reference_grid))

    yield partial(setattr, backbone, 'score_observer', backbone.score_observer)
    backbone.score_observer = observe
    for layer in backbone.modules():
        if isinstance(layer, VanillaAttention):
            yield partial(setattr, layer, 'keep_scores', layer.keep_scores)
            layer.keep_scores = True


def _observe_lavit_on_all_keys(
    backbone: LaViT, names: dict, observer: Callable[[Observed], None]
) -> Iterator[Callable]:
    def observe_less(attn: VanillaAttention | LessAttention, scores: Scores) -> None:
        if isinstance(attn, LessAttention):
            by_heads = _by_heads(scores.map, scores.heads)
            observer(Observed(names[attn], True, by_heads, 0, scores.grid, attn.reference_grid))

    def observe_vanilla(attn: VanillaAttention, args: tuple) -> None:
        x, grid, residual = args
        scores, key_grid = _vanilla_scores(attn, x, grid, residual)
        observer(Observed(names[attn], False, scores, 0, grid, key_grid))

    yield partial(setattr, backbone, 'score_observer', backbone.score_observer)
    backbone.score_observer = observe_less
    for layer in backbone.modules():
        if isinstance(layer, VanillaAttention):
            yield layer.register_forward_pre_hook(observe_vanilla).remove


def _vanilla_scores(attn: VanillaAttention, x: Tensor, grid: Grid, residual: Scores | None) -> tuple[Tensor, Grid]:
    """Scores (B, H, N, M) of a layer on the M keys that it attends to, and the grid of these.

    The fused kernel of the forward never has them, so they are computed once more.
    """
    keys, key_grid = attn.read_keys(x, grid)
    query, key = (_by_heads(t, attn.heads) for t in (attn.q(x), attn.kv(keys).chunk(2, dim=-1)[0]))
    scores = torch.matmul(query * attn.scale, key.mT)
    if residual is not None:
        e = _by_heads(residual.map, attn.heads)  # (B, H, N, K)
        up = resample_tokens(e.flatten(0, 2)[..., None], attn.reference_grid, key_grid)  # (B * H * N, M, 1)
        scores = scores + up.view_as(scores)
    return scores, key_grid


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
