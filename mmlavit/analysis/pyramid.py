"""The feature pyramid as images: the first three principal components of each level as red, green and blue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mmlavit.models.resample import ceil_div

from .figures import save_figure
from .trained import Picture

_CUT = 1  # per cent of the positions at either end of a component that take its darkest and lightest value


class Level(NamedTuple):
    """One level of a pyramid.

    Args:
        name (str): Such as 'backbone, stride 8'.
        image (np.ndarray): Components of each position, (h, w, 3), uint8.
        explained (float): Share of the variance over positions that the three components have.
    """

    name: str
    image: np.ndarray
    explained: float


def project(features: Tensor) -> tuple[np.ndarray, float]:
    """Project a map to its first three principal components over positions.

    Args:
        features (Tensor): Map of shape (C, h, w).

    Returns:
        tuple[np.ndarray, float]: Components scaled to (h, w, 3) of uint8, each from its 1st to its 99th percentile, and
        the share of the variance that they have. Components that a map lacks are 0. Signs are such that the largest
        weight of a component is positive.
    """
    channels, height, width = features.shape
    x = features.flatten(1).T.double().cpu()  # (positions, C)
    x = x - x.mean(0)
    _, values, directions = torch.linalg.svd(x, full_matrices=False)
    directions = directions[:3][values[:3] > 1e-6 * values[0]]  # what is less is rounding
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    components = (x @ (directions * largest.sign()).T).numpy()  # (positions, <= 3)
    image = np.zeros((height * width, 3), np.uint8)
    low, high = np.percentile(components, [_CUT, 100 - _CUT], axis=0)
    scaled = (components - low) / np.where(high > low, high - low, 1)
    image[:, : scaled.shape[1]] = (255 * scaled.clip(0, 1)).round()
    variance = values.square()
    return image.reshape(height, width, 3), float(variance[:3].sum() / variance.sum().clamp_min(1e-300))


@torch.no_grad()
def observe_pyramid(model: nn.Module, picture: Picture) -> list[list[Level]]:
    """Run backbone and neck on an image and project their maps.

    Args:
        model (nn.Module): Classifier, detector or segmentor.
        picture (Picture): The image.

    Returns:
        list[list[Level]]: Levels of the backbone, and those of the neck if it gives a map for each level.
    """
    maps = model.backbone(picture.inputs)
    rows = [('backbone', maps)]
    if getattr(model, 'with_neck', False):
        rows.append(('neck', model.neck(maps)))
    return [_project_all(name, maps, picture) for name, maps in rows if _are_maps(maps)]


def _are_maps(maps: Sequence[Tensor] | Tensor) -> bool:
    return not isinstance(maps, Tensor) and all(isinstance(x, Tensor) and x.dim() == 4 for x in maps)


def _project_all(name: str, maps: Sequence[Tensor], picture: Picture) -> list[Level]:
    return [Level(f'{name}, stride {_find_stride(picture.inputs, x)}', *project(x[0])) for x in maps]


def _find_stride(inputs: Tensor, x: Tensor) -> int:
    """Give the stride of a map, whose sides are rounded up: a power of two where one fits."""
    sides = list(zip(inputs.shape[-2:], x.shape[-2:], strict=True))
    fitting = (2**n for n in range(8) if all(ceil_div(whole, 2**n) == side for whole, side in sides))
    return next(fitting, round(sides[0][0] / sides[0][1]))


def plot_pyramid(images: Sequence[tuple[Picture, list[list[Level]]]], title: str, path: Path) -> None:
    """Draw images beside the levels of their pyramids.

    Args:
        images (Sequence[tuple[Picture, list[list[Level]]]]): Images and what :func:`observe_pyramid` gives for them.
        title (str): What stands above all.
        path (Path): Picture to write; its folder is made.
    """
    from matplotlib.figure import Figure

    rows = [(picture, levels) for picture, pyramid in images for levels in pyramid]
    columns = 1 + max(len(levels) for _, levels in rows)
    height, width = rows[0][0].inputs.shape[-2:]
    figure = Figure(figsize=(1.7 * columns, len(rows) * (1.6 * height / width + 0.35) + 0.4), layout='constrained')
    figure.suptitle(title, fontsize=10, parse_math=False)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes_row, (picture, levels) in zip(grid, rows, strict=True):
        axes_row[0].imshow(picture.frame())
        axes_row[0].set_title(picture.path.name, fontsize=7, parse_math=False)
        for axes, level in zip(axes_row[1:], levels, strict=False):
            axes.imshow(level.image)
            axes.set_title(f'{level.name}\n{level.explained:.0%} of the variance', fontsize=7)
    save_figure(figure, path)
