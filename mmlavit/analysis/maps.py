"""Where each point of an image looks: the attention of all layers on one image, and a picture of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mmlavit.models.observation import Observed, observe_attention
from mmlavit.models.resample import Grid

from .attention import place_of
from .figures import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VANILLA, LESS = '#2f6db5', '#c96a12'
"""Colours of the two kinds of layers in all pictures."""

COLORMAP = 'magma'

LEAST_SCALE = 3
"""Multiple of uniform attention that colours reach at least up to, so that what is nearly uniform looks like it."""


class LayerMaps(NamedTuple):
    """The attention of one layer on one image.

    Args:
        name (str): The layer, such as ``stages.2.blocks.1``.
        less (bool): Whether it is a less-attention layer.
        grid (tuple[int, int]): Grid of the queries, h * w = N.
        key_grid (tuple[int, int]): Grid of the keys that the layer attends to, of K cells.
        attention (Tensor): (H, N, K), on the CPU. Rows sum to 1, less where a transformer has extra tokens.
    """

    name: str
    less: bool
    grid: Grid
    key_grid: Grid
    attention: Tensor


@torch.no_grad()
def observe_maps(backbone: nn.Module, inputs: Tensor) -> list[LayerMaps]:
    """Run a backbone on one image and keep the attention of all layers, each on the keys that it attends to.

    Args:
        backbone (nn.Module): As for :func:`~mmlavit.models.observation.observe_attention`.
        inputs (Tensor): The image, (1, 3, H, W).

    Returns:
        list[LayerMaps]: One for each layer, in their order.

    Raises:
        ConfigError: If it is another kind of backbone.
    """
    layers = []

    def observe(now: Observed) -> None:
        attention = now.scores[0].float().softmax(-1)[:, now.extra :, now.extra :].cpu()  # (H, N, K)
        layers.append(LayerMaps(now.name, now.less, now.grid, now.key_grid, attention))

    with observe_attention(backbone, observe, all_keys=True):
        backbone(inputs)
    return layers


def find_cell(point: tuple[float, float], grid: Grid) -> int:
    """Find the cell of a grid that a point is in.

    Args:
        point (tuple[float, float]): From the left and from the top, from 0 to 1.
        grid (tuple[int, int]): Rows and columns.

    Returns:
        int: Number of the cell, row by row.
    """
    column, row = (min(int(place * cells), cells - 1) for place, cells in zip(point, reversed(grid), strict=True))
    return row * grid[1] + column


def plot_maps(
    layers: Sequence[LayerMaps], frame: np.ndarray, point: tuple[float, float], title: str, path: Path, heads: bool
) -> None:
    """Draw where a point of an image looks, a row for each stage.

    Every map has its own scale, from no attention to its maximum, which stands above it, or to :data:`LEAST_SCALE`
    times uniform attention if that is more.

    Args:
        layers (Sequence[LayerMaps]): Attention of all layers.
        frame (np.ndarray): The image as attention sees it, (H, W, 3), uint8, RGB.
        point (tuple[float, float]): From the left and from the top of the frame, from 0 to 1.
        title (str): What stands above all.
        path (Path): Picture to write; its folder is made.
        heads (bool): Whether to draw each head, a row for each layer; otherwise their mean.
    """
    from matplotlib.figure import Figure

    rows = _arrange(layers, heads)
    columns = max(map(len, rows))
    side = 1.3, 1.15 * frame.shape[0] / frame.shape[1] + 0.4  # inches of a map with its title
    figure = Figure(figsize=((columns + 2) * side[0], len(rows) * side[1] + 0.9), layout='constrained')
    figure.suptitle(title, fontsize=10, parse_math=False)
    places = figure.add_gridspec(len(rows), columns + 1, width_ratios=[2] + [1] * columns)
    whole = figure.add_subplot(places[: max(1, len(rows) // 2), 0])
    whole.imshow(frame)
    whole.set_title('the image and the point', fontsize=8)
    for i, row in enumerate(rows):
        for j, (label, layer, attention) in enumerate(row):
            shown = attention[find_cell(point, layer.grid)].reshape(layer.key_grid).numpy()
            _draw_map(
                figure.add_subplot(places[i, j + 1]), shown, frame.shape[:2], label, LESS if layer.less else VANILLA
            )
    for axes in figure.axes:
        axes.set(xticks=[], yticks=[])
        for colour, width in (('black', 2.4), ('white', 1.2)):
            place = point[0] * frame.shape[1] - 0.5, point[1] * frame.shape[0] - 0.5
            axes.plot(*place, 'o', markersize=6, markerfacecolor='none', markeredgecolor=colour, markeredgewidth=width)
    _explain_colours(figure)
    save_figure(figure, path)


def _draw_map(axes: Axes, shown: np.ndarray, size: tuple[int, int], label: str, colour: str) -> None:
    """Draw a map (rows, columns) over axes of the size of the image."""
    extent = (-0.5, size[1] - 0.5, size[0] - 0.5, -0.5)
    most = shown.max()
    top = max(most, LEAST_SCALE / shown.size)
    axes.imshow(shown, cmap=COLORMAP, vmin=0, vmax=top, extent=extent, aspect='auto')
    axes.set_title(f'{label}\nmax {most:.3f}, {most * shown.size:.1f} × uniform', fontsize=6, color=colour)
    axes.spines[:].set(color=colour, linewidth=2)


def _arrange(layers: Sequence[LayerMaps], heads: bool) -> list[list[tuple[str, LayerMaps, Tensor]]]:
    """Arrange maps (N, K) with their labels: a row for each layer and a column for each head, or a row for a stage."""
    rows: dict[int, list[tuple[str, LayerMaps, Tensor]]] = {}
    for number, layer in enumerate(layers):
        stage, place = place_of(layer.name)
        label = f'stage {stage}, layer {place}'
        if heads:
            rows[number] = [(f'{label}, head {h + 1}', layer, a) for h, a in enumerate(layer.attention)]
        else:
            rows.setdefault(stage, []).append((label, layer, layer.attention.mean(0)))
    return list(rows.values())


def _explain_colours(figure: Figure) -> None:
    """Add a bar for the maps and a legend for the kinds of layers."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.lines import Line2D

    source = ScalarMappable(cmap=COLORMAP)
    bar = figure.colorbar(source, ax=figure.axes, location='bottom', shrink=0.3, aspect=30, pad=0.03)
    bar.set_ticks([0, 1], labels=['0', f'maximum of the map, or {LEAST_SCALE} × uniform'], fontsize=7)
    kinds = {'vanilla layer': VANILLA, 'less-attention layer': LESS}
    marks = [Line2D([], [], color=colour, lw=3, label=kind) for kind, colour in kinds.items()]
    figure.legend(handles=marks, loc='outside lower left', fontsize=8, frameon=False, ncols=2)
