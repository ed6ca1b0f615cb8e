"""How diagonal less-attention scores are over a training: what its log says, and what its checkpoints measure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmlavit.models import LaViT
from mmlavit.models.arch import STRIDES
from mmlavit.models.diagonality import diagonality_loss, score_statistics, share_inside, square_grid, square_scores
from mmlavit.models.layout import Scores
from mmlavit.models.observation import Observed, observe_attention
from mmlavit.models.resample import ceil_div

from .curves import Curve, Log, Panel, Points, draw_panels

LOSS, MAGNITUDE, ENTROPY = 'loss_diag', 'la_magnitude', 'la_entropy'
_TITLES = {LOSS: 'diagonality loss, unweighted', MAGNITUDE: 'mean absolute score', ENTROPY: 'entropy (nats)'}


class Diagonality(NamedTuple):
    """Means over images and less-attention layers, as ``DiagonalityLossHook`` logs them.

    Args:
        loss (float): Diagonality-preserving loss, without its weight.
        magnitude (float): Mean absolute score.
        entropy (float): Entropy of the attention, in nats.
    """

    loss: float
    magnitude: float
    entropy: float


@torch.no_grad()
def measure_diagonality(
    backbone: nn.Module, batches: Iterable[Tensor], sizes: Iterable[tuple[int, int]] | None = None
) -> Diagonality | None:
    """Measure what the loss would be, with or without it in the training.

    Args:
        backbone (nn.Module): As for :func:`~mmlavit.models.observation.observe_attention`.
        batches (Iterable[Tensor]): Images (B, 3, H, W).
        sizes (Iterable[tuple[int, int]], optional): Height and width of the images of each batch without their padding,
            which is right and below and is left out of the loss, as in a training; None: they have none.

    Returns:
        Diagonality: The means; None if no layer is a less-attention layer.

    Raises:
        ConfigError: If it is another kind of backbone.
    """
    found: list[Tensor] = []
    size = inner = (0, 0)

    def observe(now: Observed) -> None:
        if not now.less:
            return
        cells = now.scores[:, :, now.extra :, now.extra :].float()  # (B, H, N, K)
        scores = Scores(cells.transpose(1, 2).flatten(2), cells.shape[1], now.grid)
        keys = tuple(ceil_div(side, STRIDES[-1]) for side in size) if isinstance(backbone, LaViT) else now.grid
        square = square_scores(scores, keys, now.key_grid)
        inside = None
        if inner != size:
            shares = torch.tensor([[part / whole for part, whole in zip(inner, size, strict=True)]])
            inside = share_inside(shares.to(square), square_grid(keys, now.key_grid))
        found.append(torch.stack([diagonality_loss(square, inside), *score_statistics(square, inside)]))

    with observe_attention(backbone, observe):
        for images, known in zip(batches, repeat(None) if sizes is None else sizes, strict=sizes is not None):
            size = tuple(images.shape[-2:])
            inner = tuple(known or size)
            backbone(images)
    return Diagonality(*torch.stack(found).mean(0).tolist()) if found else None


class History(NamedTuple):
    """Diagonality over one training.

    Args:
        name (str): What to call the training.
        log (Log, optional): What it logged.
        weight (float, optional): Weight of the loss in it; None: it had none.
        measured (Sequence[tuple[int, Diagonality]]): Iteration of each checkpoint and what was measured there.
        colour (str): What its curves have.
    """

    name: str
    log: Log | None
    weight: float | None
    measured: Sequence[tuple[int, Diagonality]]
    colour: str = 'C0'

    def logged(self, key: str) -> Points:
        """Give the points of a key of the log, of the loss without its weight."""
        if self.log is None or not self.weight or key not in self.log.keys(training=True):
            return []
        factor = 1 / self.weight if key == LOSS else 1
        return [(step, factor * value) for step, value in self.log.points(key)]


def plot_diagonality(histories: Sequence[History], path: Path) -> None:
    """Draw loss, magnitude and entropy over iterations: logs as lines, checkpoints as diamonds.

    Args:
        histories (Sequence[History]): Of each training.
        path (Path): Picture to write; its folder is made.
    """
    panels = []
    for key, field in zip(_TITLES, Diagonality._fields, strict=True):
        curves = []
        for history in histories:
            with_loss = f'with the loss, weight {history.weight:g}' if history.weight else 'without the loss'
            colour = dict(color=history.colour)
            points = [(step, getattr(diagonality, field)) for step, diagonality in history.measured]
            curves.append(Curve(f'{history.name}, {with_loss}: log', history.logged(key), colour))
            style = dict(colour, marker='D', linestyle='')
            curves.append(Curve(f'{history.name}, {with_loss}: checkpoints', points, style))
        panels.append(Panel(_TITLES[key], 'iteration', curves))
    draw_panels(panels, path, columns=3)
