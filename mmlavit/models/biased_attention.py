"""Full attention with an attention residual, on a CPU without gradients (ours)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PIECE_BYTES = 8 << 20
"""Bytes of residuals on all keys that exist at a time."""


def attend_with_bias(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, up: Tensor, scale: float, piece_bytes: int = PIECE_BYTES
) -> Tensor:
    """Compute ``softmax(scale Q K^T + E U^T) V`` for some queries at a time, whose ``E U^T`` stays in the caches.

    As extra columns of queries and keys, E and U would make the fused kernel as much wider for the values, too.

    Args:
        query (Tensor): Queries of shape (B, N, H, d).
        key (Tensor): Keys of shape (B, M, H, d).
        value (Tensor): Values of shape (B, M, H, d).
        bias (Tensor): Residual E on the reference keys, of shape (B, N, H, K).
        up (Tensor): Resampling U from the reference keys, of shape (M, K).
        scale (float): Factor of the scores.
        piece_bytes (int): Bytes of ``E U^T`` that may exist at a time.

    Returns:
        Tensor: Attended values of shape (B, N, H, d).
    """
    query, key, value, bias = (t.transpose(1, 2) for t in (query, key, value, bias))
    out = torch.empty_like(query)  # as strided as the queries: (B, N, H, d) in memory
    row_bytes = max(1, query.shape[0] * query.shape[1] * key.shape[2] * query.element_size())  # of no images, 0
    rows = max(64, piece_bytes // row_bytes)  # a product of fewer would not fill the kernel
    for first in range(0, query.shape[2], rows):
        piece = slice(first, first + rows)
        mask = torch.matmul(bias[:, :, piece], up.transpose(0, 1))  # (B, H, rows, M)
        out[:, :, piece] = F.scaled_dot_product_attention(query[:, :, piece], key, value, attn_mask=mask, scale=scale)
    return out.transpose(1, 2)
