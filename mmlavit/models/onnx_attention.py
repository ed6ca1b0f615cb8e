"""Attention as graphs of ONNX have it: their runtimes have no fused kernel (ours)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_is_traced = False


@contextmanager
def tracing_for_onnx() -> Iterator[None]:
    """Have models use the operators of this module: whoever traces them writes these to ONNX."""
    global _is_traced
    _is_traced = True
    try:
        yield
    finally:
        _is_traced = False


def is_traced_for_onnx() -> bool:
    """Whether what is traced now becomes a graph of ONNX."""
    return _is_traced


# One operator: as plain ones, the pieces would be half of the nodes of a trace, and tracing takes most of an export.
@torch.library.custom_op(
    'mmlavit::attend_in_pieces',
    mutates_args=(),
    schema='(Tensor query, Tensor key, Tensor value, int pieces) -> Tensor',
)
def attend_in_pieces(query: Tensor, key: Tensor, value: Tensor, pieces: int) -> Tensor:
    """Attention of some queries at a time: their scores then stay in the caches.

    Args:
        query (Tensor): Queries of shape (B, H, N, d), N a multiple of ``pieces``.
        key (Tensor): Scaled keys of shape (B, H, M, d).
        value (Tensor): Values of shape (B, H, M, d).
        pieces (int): Number of pieces.

    Returns:
        Tensor: ``softmax(Q K^T) V`` of shape (B, H, N, d).
    """
    some = query.unflatten(2, (pieces, -1)).unbind(2)
    return torch.cat([(queries @ key.transpose(2, 3)).softmax(dim=-1) @ value for queries in some], dim=2)


@attend_in_pieces.register_fake
def _like_queries(query: Tensor, key: Tensor, value: Tensor, pieces: int) -> Tensor:
    return query.new_empty(*query.shape[:-1], value.shape[-1])
