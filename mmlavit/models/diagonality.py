"""Diagonality-preserving loss (paper, "Diagonality Preserving Loss"; normalisation and averaging ours)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .layout import Scores
from .resample import Grid, resample_tokens


def square_scores(scores: Scores, key_grid: Grid, reference_grid: Grid) -> Tensor:
    """Average less-attention scores to a square matrix, queries and keys on one grid (ours).

    That grid is the reference key grid, or on each axis the key grid where that is smaller: averaging to more
    positions than there are keys would only compare interpolated copies. In stage 4 at the architecture's own image
    size nothing is averaged and the result is the paper's matrix.

    Args:
        scores (Scores): Scores of shape (B, N, heads * K), K reference keys.
        key_grid (tuple[int, int]): Grid of the spatially reduced keys, stride 32 of the image.
        reference_grid (tuple[int, int]): Grid of the K reference keys.

    Returns:
        Tensor: Scores of shape (B, heads, S, S), S positions on the common grid, in float32 (float64 stays).
    """
    grid = (min(reference_grid[0], key_grid[0]), min(reference_grid[1], key_grid[1]))
    size, keys = grid[0] * grid[1], reference_grid[0] * reference_grid[1]
    batch, heads = scores.map.shape[0], scores.heads
    square = resample_tokens(scores.map, scores.grid, grid)  # (B, S, heads * K)
    square = square if square.dtype == torch.float64 else square.float()
    square = square.view(batch, size, heads, keys).permute(0, 2, 3, 1)  # (B, heads, K, S)
    square = resample_tokens(square.reshape(-1, keys, size), reference_grid, grid)  # (B * heads, S keys, S queries)
    return square.view(batch, heads, size, size).transpose(2, 3)


def diagonality_loss(scores: Tensor) -> Tensor:
    """Penalise square scores that are not symmetric or whose diagonal does not dominate its row.

    With S the scores divided by their standard deviation, ``mean|S_ij - S_ji| + mean_{j != i} relu(S_ij - S_ii)``.
    The division is ours: without it, shrinking all scores would minimise the loss. The gradient passes through the
    standard deviation, so that it is orthogonal to the scores: with a detached one the value would be the same, but
    every step would still shrink the scores, ever faster, until attention is uniform.

    Args:
        scores (Tensor): Square pre-softmax scores of shape (..., S, S).

    Returns:
        Tensor: Scalar, the mean over all leading dimensions (images and heads). Zero if S is 1.
    """
    size = scores.shape[-1]
    if size == 1:
        return scores.sum() * 0  # one key: nothing to compare, and a standard deviation of one number is undefined
    deviation = scores.std(dim=(-2, -1), keepdim=True)
    # Scores that differ by rounding only (a uniform image) must not have that noise blown up to unit variance.
    floor = 1e-5 * scores.detach().abs().mean(dim=(-2, -1), keepdim=True) + torch.finfo(scores.dtype).tiny
    scores = scores / torch.maximum(deviation, floor)
    asymmetry = (scores - scores.transpose(-2, -1)).abs().mean()
    excess = (scores - scores.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)).relu()  # zero on the diagonal
    return asymmetry + excess.sum(dim=(-2, -1)).mean() / (size * (size - 1))


class ScoreStatistics(NamedTuple):
    """Scalars that tell how sharp less-attention is; both detached."""

    magnitude: Tensor
    """Mean absolute score."""
    entropy: Tensor
    """Mean entropy of the softmax over keys, in nats."""


@torch.no_grad()
def score_statistics(scores: Tensor) -> ScoreStatistics:
    """Summarise square scores for the log (ours).

    Args:
        scores (Tensor): Pre-softmax scores of shape (..., S, S), queries by keys.

    Returns:
        ScoreStatistics: Mean absolute score and mean entropy of the attention over the S keys.
    """
    log_probs = scores.log_softmax(dim=-1)
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
    return ScoreStatistics(scores.abs().mean(), entropy.mean())
