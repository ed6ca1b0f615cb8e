"""Images resized as the transforms of mmcv do it, by OpenCV or as Pillow does it.

Pillow's filters are those of its C code, with weights of 22 bits: the result is equal to the byte, unless Pillow
filters columns first, as version 13 does for some sizes that change the ratio of height to width; grey levels then
differ by rounding, and with few pixels by up to 31.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import cv2
import numpy as np

from .errors import UserError

CV2_CODES = {
    'nearest': cv2.INTER_NEAREST,
    'bilinear': cv2.INTER_LINEAR,
    'bicubic': cv2.INTER_CUBIC,
    'area': cv2.INTER_AREA,
    'lanczos': cv2.INTER_LANCZOS4,
}
"""Interpolations by OpenCV."""

_PRECISION = 22  # bits of Pillow's fixed-point weights
_BLOCK = 16  # columns of the result that are computed at once


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(0, 1 - np.abs(x))


def _cubic(x: np.ndarray, a: float = -0.5) -> np.ndarray:
    x = np.abs(x)
    inner, outer = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, inner, np.where(x < 2, outer, 0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


PILLOW_FILTERS: Mapping[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    'bilinear': (_triangle, 1.0),
    'bicubic': (_cubic, 2.0),
    'lanczos': (_lanczos, 3.0),
}
"""Interpolations by Pillow: the filter and its radius."""


def apply(transform: Mapping[str, Any], image: np.ndarray) -> np.ndarray:
    """Apply a transform that an exported model names.

    Args:
        transform (Mapping): 'type' is Resize, ResizeEdge or CenterCrop; the other keys are arguments of mmcv's or
            mmpretrain's class of this name.
        image (np.ndarray): Image of shape (H, W, 3), uint8.

    Returns:
        np.ndarray: The new image.
    """
    height, width = image.shape[:2]
    new_height, new_width = shape_after(transform, (height, width))
    if transform['type'] == 'CenterCrop':
        top, left = round((height - new_height) / 2), round((width - new_width) / 2)
        return image[top : top + new_height, left : left + new_width]
    return resize(image, (new_width, new_height), transform['interpolation'], transform['backend'])


def shape_after(transform: Mapping[str, Any], shape: tuple[int, int]) -> tuple[int, int]:
    """Tell how large an image is after a transform.

    Args:
        transform (Mapping): As for :func:`apply`.
        shape (tuple[int, int]): Height and width before.

    Returns:
        tuple[int, int]: Height and width after.
    """
    height, width = shape
    if transform['type'] == 'CenterCrop':
        crop_width, crop_height = transform['crop_size']
        return min(crop_height, height), min(crop_width, width)
    if transform['type'] == 'ResizeEdge':
        scale, edge = transform['scale'], transform['edge']
        if edge == 'width' or (edge == 'short' and width < height) or (edge == 'long' and width > height):
            return int(scale * height / width), scale
        return scale, int(scale * width / height)
    return _resized_shape(transform, height, width)


def shape_after_all(transforms: Iterable[Mapping[str, Any]], shape: tuple[int, int]) -> tuple[int, int]:
    """Tell how large an image is after some transforms, without resizing it.

    Args:
        transforms (Iterable[Mapping]): Each as for :func:`apply`.
        shape (tuple[int, int]): Height and width before.

    Returns:
        tuple[int, int]: Height and width after: what the network sees.
    """
    for transform in transforms:
        shape = shape_after(transform, shape)
    return shape


def resizing_bytes(transforms: Iterable[Mapping[str, Any]], shape: tuple[int, int]) -> float:
    """Estimate what the transforms themselves need: one may make an image large before another cuts a part out.

    Args:
        transforms (Iterable[Mapping]): Each as for :func:`apply`.
        shape (tuple[int, int]): Height and width before.

    Returns:
        float: Bytes at the peak.
    """
    needed = 0.0
    for transform in transforms:
        before, shape = shape, shape_after(transform, shape)
        if transform.get('backend') == 'pillow':  # columns come first
            needed = max(needed, _resampling_bytes(before[0], before[1], shape[1]))
            needed = max(needed, _resampling_bytes(shape[1], before[0], shape[0]))
        else:
            needed = max(needed, 3.0 * max(before[0] * shape[1], shape[0] * shape[1]))
    return needed


def _resampling_bytes(lines: int, source: int, result: int) -> float:
    """Give what :func:`_resample_columns` needs: bytes twice, and a block of columns in float64."""
    block = (_BLOCK + 8) * max(source / max(result, 1), 1) + 2 * _BLOCK
    return lines * (3.0 * source + 9.0 * result + 24.0 * block)


def _resized_shape(transform: Mapping[str, Any], height: int, width: int) -> tuple[int, int]:
    """Height and width after mmcv's Resize."""
    scale, factor = transform['scale'], transform['scale_factor']
    if scale is None:  # mmcv then knows width and height; keep_ratio changes nothing but rounding
        scale = [_scaled(width, factor[0]), _scaled(height, factor[1])]
    if not transform['keep_ratio']:
        return scale[1], scale[0]
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return _scaled(height, factor), _scaled(width, factor)


def _scaled(length: int, factor: float) -> int:
    return int(length * float(factor) + 0.5)


def resize(image: np.ndarray, size: tuple[int, int], interpolation: str, backend: str) -> np.ndarray:
    """Resize an image.

    Args:
        image (np.ndarray): Image of shape (H, W, 3), uint8.
        size (tuple[int, int]): New width and height.
        interpolation (str): 'bilinear', 'bicubic', ...
        backend (str): 'cv2' or 'pillow'.

    Returns:
        np.ndarray: Image of shape (height, width, 3), uint8.

    Raises:
        UserError: If nothing would be left of it.
    """
    if min(size) < 1:
        raise UserError(
            'an image of {}x{} cannot be resized as the model wants it (to {}x{})'.format(*image.shape[:2], *size[::-1])
        )
    if backend == 'cv2':
        return cv2.resize(image, size, interpolation=CV2_CODES[interpolation])
    image = _resample_columns(image, size[0], *PILLOW_FILTERS[interpolation])
    rows_last = _resample_columns(image.transpose(1, 0, 2), size[1], *PILLOW_FILTERS[interpolation])
    return np.ascontiguousarray(rows_last.transpose(1, 0, 2))


def _resample_columns(
    image: np.ndarray, width: int, function: Callable[[np.ndarray], np.ndarray], radius: float
) -> np.ndarray:
    """Resample the second axis of an image (H, W, 3) of bytes as Pillow does, with weights of 22 bits."""
    source = image.shape[1]
    if source == width:
        return image
    scale = source / width
    stretch = max(scale, 1.0)  # filters grow with the pixels of the result
    support = radius * stretch
    centre = (np.arange(width) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), source)
    taps = first[:, None] + np.arange(math.ceil(support) * 2 + 1)  # (width, taps)
    weights = function((taps - centre[:, None] + 0.5) / stretch) * (taps < last[:, None])
    weights /= weights.sum(axis=1, keepdims=True)
    weights = np.trunc(weights * (1 << _PRECISION) + np.copysign(0.5, weights))
    taps = np.minimum(taps, source - 1)
    columns = image.transpose(1, 0, 2).reshape(source, -1)  # (source, H * 3)
    resized = np.empty((width, columns.shape[1]), np.uint8)
    for begin in range(0, width, _BLOCK):
        part = slice(begin, begin + _BLOCK)
        low, high = first[part].min(), last[part].max()
        matrix = np.zeros((weights[part].shape[0], high - low))
        np.add.at(matrix, (np.arange(matrix.shape[0])[:, None], np.minimum(taps[part], high - 1) - low), weights[part])
        # Sums of integers that float64 holds, so they are exact. As in Pillow, half is added, and the fraction cut off.
        total = matrix @ columns[low:high].astype(np.float64) + (1 << (_PRECISION - 1))
        resized[part] = np.clip(np.floor(total / (1 << _PRECISION)), 0, 255)
    return np.ascontiguousarray(resized.reshape(width, image.shape[0], -1).transpose(1, 0, 2))
