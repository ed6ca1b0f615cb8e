"""Which part of a batch is image, and which is padding."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def find_image_sizes(inputs: Tensor, data_samples: Any) -> list[tuple[int, int]] | None:
    """Find the height and width of each image of a batch that the data preprocessor of a toolbox has padded.

    ``img_shape`` alone does not tell: mmpretrain's wrappers of torchvision leave there what the image was before them.

    Args:
        inputs (Tensor): Images of shape (B, channels, H, W).
        data_samples (list, optional): Data samples of mmdet or mmseg; others tell of no padding.

    Returns:
        list[tuple[int, int]] or None: None if the batch is not padded, or not known to be.
    """
    samples = data_samples if isinstance(data_samples, (list, tuple)) else []
    infos = [getattr(sample, 'metainfo', {}) for sample in samples]
    # mmdet's data preprocessor writes the one, mmseg's the other
    if not infos or not all('batch_input_shape' in info or 'padding_size' in info for info in infos):
        return None
    shape = tuple(inputs.shape[-2:])
    sizes = [tuple(info['img_shape'][:2]) for info in infos]
    return None if all(size == shape for size in sizes) else sizes
