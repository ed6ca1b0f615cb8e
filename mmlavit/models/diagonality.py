"""Diagonality-preserving loss (paper, "Diagonality Preserving Loss"; normalisation and averaging ours)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .factored import AnyScores
from .resample import Grid, resample_tokens


def square_grid(key_grid: Grid, reference_grid: Grid) -> Grid:
    """Grid of :func:`square_scores`: on each axis the smaller of the two."""
    return min(reference_grid[0], key_grid[0]), min(reference_grid[1], key_grid[1])


def square_scores(scores: AnyScores, key_grid: Grid, reference_grid: Grid) -> Tensor:
    """Average less-attention scores to a square matrix, queries and keys on one grid (ours).

    That grid is the reference key grid, or on each axis the key grid where that is smaller: averaging to more
    positions than there are keys would only compare interpolated copies. In stage 4 at the architecture's own image
    size nothing is averaged and the result is the paper's matrix.

    Args:
        scores (Scores or FactoredScores): Scores of shape (B, N, heads * K), K reference keys.
        key_grid (tuple[int, int]): Grid of the spatially reduced keys, stride 32 of the image.
        reference_grid (tuple[int, int]): Grid of the K reference keys.

    Returns:
        Tensor: Scores of shape (B, heads, S, S), S positions on the common grid, in float32 (float64 stays).
    """
    grid = square_grid(key_grid, reference_grid)
    size, keys = grid[0] * grid[1], reference_grid[0] * reference_grid[1]
    heads = scores.heads
    square = scores.average(grid)  # (B, S, heads * K)
    batch = square.shape[0]
    square = square.view(batch, size, heads, keys).permute(0, 2, 3, 1)  # (B, heads, K, S)
    square = resample_tokens(square.reshape(-1, keys, size), reference_grid, grid)  # (B * heads, S keys, S queries)
    return square.view(batch, heads, size, size).transpose(2, 3)


# Standard deviation of scores at which the loss has half its weight. Before training it is 0.003 to 0.1 in LaViT-nano.
HALF_WEIGHT_DEVIATION = 0.1


def diagonality_loss(scores: Tensor, inside: Tensor | None = None) -> Tensor:
    """Penalise square scores that are not symmetric or whose diagonal does not dominate its row.

    With S the scores divided by their standard deviation d, ``mean|S_ij - S_ji| + mean_{j != i} relu(S_ij - S_ii)``,
    times ``d / (d + 0.1)``, which counts as a constant.

    All of the scale is ours. Without the division, shrinking all scores would minimise the loss. The gradient passes
    through d, so that it is orthogonal to the scores: with a detached one every step would still shrink them, ever
    faster, until attention is uniform. Without the factor, the gradient grows as 1 / d: that of scores which hardly
    differ, as those of a uniform image or of any image at the start, would drown that of the task.

    Args:
        scores (Tensor): Square pre-softmax scores of shape (..., heads, S, S).
        inside (Tensor, optional): How much of each position is inside the image, from 0 to 1, of shape (..., S). A
            pair of positions is weighted by the product of their shares, in d as well. None: all count fully.

    Returns:
        Tensor: Scalar, the mean over all leading dimensions (images and heads). Zero if S is 1.
    """
    if inside is None:
        inside = scores.new_ones(scores.shape[-1])
    else:
        inside = inside.to(scores.dtype).unsqueeze(-2)  # (..., 1, S), for all heads
    pairs = inside.unsqueeze(-1) * inside.unsqueeze(-2)  # (..., 1, S, S)
    others = pairs * (1 - torch.eye(scores.shape[-1], dtype=scores.dtype, device=scores.device))
    tiny = torch.finfo(scores.dtype).tiny

    def mean(values: Tensor, weights: Tensor) -> Tensor:
        total = weights.sum(dim=(-2, -1), keepdim=True).clamp(min=tiny)  # of one position, there are no others
        return (values * weights).sum(dim=(-2, -1), keepdim=True) / total

    variance = mean((scores - mean(scores, pairs)).square(), pairs)
    # Scores that differ by rounding only (a uniform image) must not have that noise blown up to unit variance.
    floor = (1e-5 * mean(scores.detach().abs(), pairs)).square() + tiny
    deviation = torch.maximum(variance, floor).sqrt()
    scores = scores / deviation
    asymmetry = mean((scores - scores.transpose(-2, -1)).abs(), pairs)
    excess = mean((scores - scores.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)).relu(), others)
    factor = deviation / (deviation + HALF_WEIGHT_DEVIATION)
    return (factor.detach() * (asymmetry + excess)).mean()


def share_inside(sizes: Tensor, grid: Grid) -> Tensor:
    """Share of each position of a grid that lies inside its image, where a batch is padded at the bottom and right.

    Args:
        sizes (Tensor): Height and width of each image over those of the batch, from 0 to 1, of shape (B, 2).
        grid (tuple[int, int]): The grid.

    Returns:
        Tensor: Shares of shape (B, S), S positions row by row.
    """
    along = []
    for size, cells in zip(sizes.unbind(dim=1), grid, strict=True):
        starts = torch.arange(cells, device=sizes.device, dtype=sizes.dtype)
        along.append((size.unsqueeze(1) * cells - starts).clamp(0, 1))  # (B, cells)
    rows, columns = along
    return (rows.unsqueeze(2) * columns.unsqueeze(1)).flatten(1)


class ScoreStatistics(NamedTuple):
    """Scalars that tell how sharp less-attention is; both detached."""

    magnitude: Tensor
    """Mean absolute score."""
    entropy: Tensor
    """Mean entropy of the softmax over keys, in nats."""


@torch.no_grad()
def score_statistics(scores: Tensor, inside: Tensor | None = None) -> ScoreStatistics:
    """Summarise square scores for the log (ours).

    Args:
        scores (Tensor): Pre-softmax scores of shape (..., heads, S, S), queries by keys.
        inside (Tensor, optional): As for :func:`diagonality_loss`; attention is over all keys.

    Returns:
        ScoreStatistics: Mean absolute score and mean entropy of the attention over the S keys.
    """
    log_probs = scores.log_softmax(dim=-1)
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
    if inside is None:
        return ScoreStatistics(scores.abs().mean(), entropy.mean())
    inside = inside.to(scores.dtype).unsqueeze(-2).expand_as(entropy)  # (..., heads, S)
    pairs = inside.unsqueeze(-1) * inside.unsqueeze(-2)
    magnitude = (scores.abs() * pairs).sum(dim=(-2, -1)) / pairs.sum(dim=(-2, -1))  # of each image and head
    return ScoreStatistics(magnitude.mean(), ((entropy * inside).sum(dim=-1) / inside.sum(dim=-1)).mean())
