"""Attention maps as a page: one HTML file in which a click on the image shows the maps of that point."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import nn

from mmlavit.models import LaViT
from mmlavit.models.arch import STRIDES
from mmlavit.models.resample import Grid, ceil_div, resample_tokens
from mmlavit.utils.local_files import write_file

from .attention import place_of
from .maps import COLORMAP, LEAST_SCALE, LayerMaps, observe_maps, plot_maps
from .pages import render
from .trained import Picture, Trained

BUDGET = 6 << 20
"""Bytes of attention that a page may have before compression; where there is more, queries are averaged."""


def write_maps(
    trained: Trained, picture: Picture, path: Path, point: tuple[float, float] = (0.5, 0.5), heads: bool = False
) -> Path:
    """Draw the attention maps of an image, for one point as a picture and for all as a page beside it.

    Args:
        trained (Trained): The model; its backbone is looked at.
        picture (Picture): The image.
        path (Path): Picture to write, such as ``maps.png``; its folder is made.
        point (tuple[float, float]): From the left and from the top of the image, from 0 to 1.
        heads (bool): Whether the picture shows each head, instead of their mean.

    Returns:
        Path: The page: the name of the picture, with the ending ``.html``.

    Raises:
        ConfigError: If the backbone has no attention that can be observed.
        UserError: If the page cannot be written.
    """
    backbone = trained.model.backbone
    layers = observe_maps(backbone, picture.inputs)
    frame = picture.frame(_find_multiple(backbone, layers[0].grid, picture.inputs.shape[-2:]))
    size = picture.inner[::-1]
    point = tuple(place * side / full for place, side, full in zip(point, size, frame.shape[1::-1], strict=True))
    plot_maps(layers, frame, point, f'{trained.name}: attention on {picture.path.name}', path, heads)
    names = dict(model=trained.name, checkpoint=trained.checkpoint.name, image=picture.path.name)
    html = make_page(layers, frame, dict(names, size=size, point=point))
    write_file(path.with_suffix('.html'), html.encode())
    return path.with_suffix('.html')


def _find_multiple(backbone: nn.Module, grid: Grid, size: Sequence[int]) -> int:
    """Find what a backbone pads its images to, right and below: whole patches, in some plain transformers."""
    if isinstance(backbone, LaViT):
        return STRIDES[-1]
    patch = next((module.stride[0] for module in backbone.modules() if isinstance(module, nn.Conv2d)), 1)
    return patch if grid == tuple(ceil_div(side, patch) for side in size) else 1


def make_page(layers: Sequence[LayerMaps], frame: np.ndarray, about: Mapping[str, Any]) -> str:
    """Make the page.

    Args:
        layers (Sequence[LayerMaps]): Attention of all layers.
        frame (np.ndarray): The image as attention sees it, (H, W, 3), uint8, RGB.
        about (Mapping[str, Any]): What 'model', 'checkpoint' and 'image' are called, 'size', width and height of the
            image without padding, and 'point', what is shown first, from the left and from the top, from 0 to 1.

    Returns:
        str: HTML that loads nothing.
    """
    page = dict(
        about,
        **make_payload(layers),
        frame=frame.shape[1::-1],
        src=_inline(frame),
        colours=_colours(),
        least=LEAST_SCALE,
    )
    less = sum(layer.less for layer in layers)
    return render(
        'attention',
        page=page,
        less=less,
        vanilla=len(layers) - less,
        extra=any(float(layer.attention[0, 0].sum()) < 0.999 for layer in layers),
        pooled=any(entry['queries'] != entry['grid'] for entry in page['layers']),
    )


def make_payload(layers: Sequence[LayerMaps], budget: int = BUDGET) -> dict[str, Any]:
    """Make of the attention what the page reads.

    A map is rounded to 1/255 of its maximum. Maps follow one another by layer, head and query.

    Args:
        layers (Sequence[LayerMaps]): Attention of all layers.
        budget (int): Bytes of maps before compression.

    Returns:
        dict[str, Any]: 'layers': for each layer ``stage``, ``less``, ``heads``, ``grid`` (rows and columns of the
        queries), ``queries`` (of those that have a map), ``keys``, ``first_value`` and ``first_map`` (numbers of its
        first byte and map); 'values' (uint8, a byte for each key) and 'maxima' (uint16, 65535 for an attention of 1,
        one for each map), both compressed by zlib, in base64.
    """
    side = _choose_side(layers, budget)
    entries, values, maxima = [], [], []
    for layer in layers:
        queries = tuple(min(side, length) for length in layer.grid)
        attention = resample_tokens(layer.attention, layer.grid, queries).numpy()  # (H, n, K)
        top = np.maximum(np.round(attention.max(-1) * 65535), 1)  # (H, n)
        entries.append(
            dict(
                stage=place_of(layer.name)[0],
                less=layer.less,
                heads=len(attention),
                grid=layer.grid,
                queries=queries,
                keys=layer.key_grid,
                first_value=sum(map(len, values)),
                first_map=sum(map(len, maxima)),
            )
        )
        shares = attention / (top[..., None] / 65535)
        values.append(np.round(255 * shares.clip(0, 1)).astype(np.uint8).ravel())
        maxima.append(top.astype('<u2').ravel())
    return dict(layers=entries, values=_pack(np.concatenate(values)), maxima=_pack(np.concatenate(maxima)))


def _choose_side(layers: Sequence[LayerMaps], budget: int) -> int:
    """Choose how many queries a side of a grid may have."""
    side = max(max(layer.grid) for layer in layers)

    def size(layer: LayerMaps) -> int:
        heads, _, keys = layer.attention.shape
        return min(side, layer.grid[0]) * min(side, layer.grid[1]) * heads * keys

    while side > 1 and sum(map(size, layers)) > budget:
        side -= 1
    return side


def _pack(array: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(array.tobytes(), 9)).decode()


def _inline(frame: np.ndarray) -> str:
    _, encoded = cv2.imencode('.jpg', frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    return f'data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode()}'


def _colours() -> str:
    from matplotlib import colormaps

    table = colormaps[COLORMAP](np.arange(256), bytes=True)[:, :3]
    return table.tobytes().hex()
