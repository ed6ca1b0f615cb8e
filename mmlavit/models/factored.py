"""Scores of less-attention layers in factors, which fused attention kernels multiply out (ours).

The transforms are linear, so the scores of every less-attention layer of a stage are ``A_0 T^T + U g``: A_0 (N, K) are
those of the stage's vanilla layer, T (K, K) is the product of the Thetas, U (N, n) the resampling from the reference
grid of queries, and g (n, K) what the Psis add there. That is a product of queries ``[A_0, U]``, the same for the whole
stage, and keys ``[T, g^T]`` of the layer. A fused kernel computes it, its softmax and the sum of values at once, so
that no layer writes N x K scores or attention weights. T and g are small.

It pays where memory is the limit: on GPUs, in half precision.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import Scores
from .resample import Grid, cached_matrix, resample_tokens

WIDTH = 256
"""Columns of queries up to which kernels are fused."""

TRAINING_WIDTH = 128
"""The same, with a fused backward pass."""


@dataclass(frozen=True)
class FactoredScores:
    """Pre-softmax scores ``A_0 T^T + U g`` of one less-attention layer on the K reference keys.

    Args:
        query (Tensor): ``[A_0, U, 0]`` of shape (B, N, H, W), W a multiple of eight.
        coarse (Tensor): A_0, averaged to the n reference queries, of shape (B, n, H, K), in float32.
        down_up (Tensor): ``D U``, there and back again, of shape (n, n), in float32.
        theta (Tensor): T of shape (K, K), in float32.
        offset (Tensor): g of shape (B, n, H, K), in float32.
        grid (tuple[int, int]): Grid of the N queries.
        query_grid (tuple[int, int]): Reference grid of the queries, of n cells.
    """

    query: Tensor
    coarse: Tensor
    down_up: Tensor
    theta: Tensor
    offset: Tensor
    grid: Grid
    query_grid: Grid

    @property
    def heads(self) -> int:
        """Number of heads H."""
        return self.query.shape[2]

    @property
    def map(self) -> Tensor:
        """The scores multiplied out, (B, N, H * K), as :class:`~mmlavit.models.layout.Scores` have them.

        They are computed anew each time.
        """
        scores = torch.matmul(self.query.transpose(1, 2), self.key().transpose(2, 3))  # (B, H, N, K)
        return scores.transpose(1, 2).flatten(2)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.query.device

    def average(self, grid: Grid) -> Tensor:
        """Average queries to a smaller grid of S cells: (B, S, H * K), in float32."""
        interpolated = any(side < own for side, own in zip(self.grid, self.query_grid, strict=True))
        if interpolated or any(own % wanted for own, wanted in zip(self.query_grid, grid, strict=True)):
            return Scores(self.map, self.heads, self.grid).average(grid)
        with torch.autocast(self.device.type, enabled=False):
            # Cells of the reference grid lie within those of the smaller one.
            return resample_tokens(self._average(self.theta, self.offset.flatten(2)), self.query_grid, grid)

    def _average(self, theta: Tensor, offset: Tensor) -> Tensor:
        """``D (A_0 T^T + U g)``, the average on the reference grid, for T and g (B, n, H * K)."""
        return torch.matmul(self.coarse, theta.T).flatten(2) + torch.matmul(self.down_up, offset)

    def key(self) -> Tensor:
        """``[T, g^T, 0]`` of shape (B, H, K, W), in the type of the queries."""
        batch, queries, heads, keys = self.offset.shape
        theta = self.theta.expand(batch, heads, keys, keys)
        key = torch.cat([theta, self.offset.permute(0, 2, 3, 1)], dim=-1)
        return F.pad(key, (0, self.query.shape[-1] - keys - queries)).to(self.query.dtype)

    def transform(self, delta_theta: Tensor, delta_psi: Tensor) -> FactoredScores:
        """Give ``Psi A Theta^T``.

        Args:
            delta_theta (Tensor): Theta - I, of shape (K, K).
            delta_psi (Tensor): Of shape (n, n); Psi is ``I + U delta_psi D``.

        Returns:
            FactoredScores: The transformed scores.
        """
        with torch.autocast(self.device.type, enabled=False):
            theta = delta_theta.float()
            theta = torch.eye(theta.shape[0], device=theta.device, dtype=theta.dtype) + theta
            product = torch.matmul(theta, self.theta)
            offset = torch.matmul(self.offset, theta.T).flatten(2)  # (B, n, H * K)
            offset = offset + torch.matmul(delta_psi.float(), self._average(product, offset))
        return replace(self, theta=product, offset=offset.view_as(self.offset))

    def attend(self, values: Tensor) -> Tensor:
        """Softmax over the reference keys and weighted sum of values (B, K, C): tokens (B, N, C)."""
        values = values.unflatten(-1, (self.heads, -1)).transpose(1, 2).to(self.query.dtype)  # (B, H, K, d)
        out = F.scaled_dot_product_attention(self.query.transpose(1, 2), self.key(), values, scale=1.0)
        return out.transpose(1, 2).flatten(2)


def factor(scores: Scores, query_grid: Grid) -> FactoredScores:
    """Begin a stage's factors with the scores of its vanilla layer.

    Args:
        scores (Scores): Scores of shape (B, N, H * K).
        query_grid (tuple[int, int]): Reference grid of the queries, of n cells.

    Returns:
        FactoredScores: The same scores: T is the identity, g is zero.
    """
    a = scores.map.unflatten(-1, (scores.heads, -1))  # (B, N, H, K)
    batch, tokens, heads, keys = a.shape
    queries = query_grid[0] * query_grid[1]
    sides = list(zip(query_grid, scores.grid, strict=True))
    with torch.autocast(a.device.type, enabled=False):
        ups = [cached_matrix(small, large, a.device, torch.float32) for small, large in sides]
        downs = [cached_matrix(large, small, a.device, torch.float32) for small, large in sides]
        down_up = _kron(*(torch.matmul(down, up) for down, up in zip(downs, ups, strict=True)))  # (n, n)
        up = _kron(*ups).to(a.dtype)  # (N, n)
        coarse = scores.average(query_grid).float().view(batch, queries, heads, keys)
    zeros = a.new_zeros(()).expand(batch, tokens, heads, -(keys + queries) % 8)
    query = torch.cat([a, up[:, None].expand(batch, tokens, heads, queries), zeros], dim=-1)
    theta = torch.eye(keys, device=a.device, dtype=torch.float32)
    return FactoredScores(query, coarse, down_up, theta, torch.zeros_like(coarse), scores.grid, query_grid)


def _kron(rows: Tensor, columns: Tensor) -> Tensor:
    """Kronecker product (H * W, h * w) of matrices (H, h) and (W, w); torch's compiles anew for each size."""
    return (rows[:, None, :, None] * columns[:, None]).flatten(2).flatten(0, 1)


AnyScores = Scores | FactoredScores
"""Scores as a map, or in factors; both have ``map``, ``heads`` and ``grid``."""


def factoring_pays(scores: AnyScores, query_grid: Grid) -> bool:
    """Whether a less-attention layer should put the scores before it into factors.

    Args:
        scores (Scores or FactoredScores): Scores of the layer before it.
        query_grid (tuple[int, int]): Reference grid of the queries.

    Returns:
        bool: True on a GPU in half precision, for more tokens than the factors have columns. False if they are there.
    """
    if isinstance(scores, FactoredScores):
        return False
    a = scores.map
    if not a.is_cuda or a.dtype not in (torch.float16, torch.bfloat16):
        return False
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False
    width = a.shape[2] // scores.heads + query_grid[0] * query_grid[1]
    widest = TRAINING_WIDTH if torch.is_grad_enabled() else WIDTH
    return width <= widest and a.shape[1] > width
