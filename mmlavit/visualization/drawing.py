"""What was annotated in an image, drawn over it by the visualizer of its toolbox; sheets and files of pictures."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement, PixelData
from mmengine.visualization import Visualizer
from torch import Tensor

from mmlavit.errors import UserError
from mmlavit.utils.local_files import write_file

_GAP = 6  # pixels between the images of a sheet
_HEADER = 36  # pixels for the titles of columns


def build_visualizer(scope: str, meta: Mapping[str, Any]) -> Visualizer:
    """Build the visualizer of a toolbox, without backends to write to.

    Args:
        scope (str): 'mmdet', 'mmseg' or 'mmpretrain'.
        meta (Mapping): The ``metainfo`` of a dataset: classes, and colours where it has them.

    Returns:
        Visualizer: For :func:`draw_annotations`.
    """
    if scope == 'mmdet':
        from mmdet.visualization import DetLocalVisualizer

        visualizer = DetLocalVisualizer(alpha=0.6)
    elif scope == 'mmseg':
        from mmseg.visualization import SegLocalVisualizer

        visualizer = SegLocalVisualizer(alpha=0.5)
    else:
        from mmpretrain.visualization import UniversalVisualizer

        visualizer = UniversalVisualizer()
    visualizer.dataset_meta = dict(meta)
    return visualizer


def draw_annotations(
    visualizer: Visualizer, image: np.ndarray, sample: BaseDataElement, enlarge: int = 1
) -> np.ndarray:
    """Draw the annotations of a data sample over its image, both ``enlarge`` times as large.

    Args:
        visualizer (Visualizer): That of the sample's toolbox.
        image (np.ndarray): (H, W, 3), uint8, BGR, or (H, W, 1), gray.
        sample (BaseDataElement): A data sample of mmdet, mmseg or mmpretrain; it is not changed.
        enlarge (int): Factor.

    Returns:
        np.ndarray: The drawn image, uint8, BGR.

    Raises:
        UserError: If the image has another number of channels.
    """
    if image.shape[2] not in (1, 3):
        raise UserError(f'images of {image.shape[2]} channels cannot be drawn; expected one or three')
    image = np.broadcast_to(image, (*image.shape[:2], 3))
    sample = sample.cpu()  # a copy
    picture = _enlarge(image, enlarge)
    options = dict(draw_gt=True, draw_pred=False)
    if hasattr(visualizer, 'visualize_cls'):
        return visualizer.visualize_cls(picture, sample, **options)[..., ::-1]
    if 'gt_sem_seg' in sample:
        labels = sample.gt_sem_seg
        name = 'sem_seg' if 'sem_seg' in labels else 'data'  # of mmdet, of mmseg
        sample.gt_sem_seg = PixelData(**{name: _repeat(labels.get(name), enlarge)})
    if 'gt_instances' in sample:
        found = sample.gt_instances
        found.bboxes = getattr(found.bboxes, 'tensor', found.bboxes) * enlarge  # mmdet may wrap them
        if 'masks' in found:
            found.masks = _repeat(torch.from_numpy(found.masks.to_ndarray()), enlarge)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', '.*out of bounds')  # boxes and outlines at the image's border
        visualizer.add_datasample('', picture, sample, **options)
    return visualizer.get_image()[..., ::-1]


def make_sheet(images: Sequence[np.ndarray], columns: int = 3, titles: Sequence[str] = ()) -> np.ndarray:
    """Put images side by side on one sheet.

    Args:
        images (Sequence[np.ndarray]): At least one, (H, W, 3), uint8; all are shown at the first one's size.
        columns (int): Images in a row.
        titles (Sequence[str]): What stands above each column.

    Returns:
        np.ndarray: The sheet, (H, W, 3), uint8, white between the images.
    """
    import cv2
    import mmcv
    from torchvision.utils import make_grid

    size = images[0].shape[1::-1]
    tiles = [torch.from_numpy(mmcv.imresize(image, size)).permute(2, 0, 1) for image in images]
    sheet = make_grid(tiles, columns, padding=_GAP, pad_value=255).permute(1, 2, 0).numpy()
    if not titles:
        return sheet
    header = np.full((_HEADER, sheet.shape[1], 3), 255, np.uint8)
    for column, title in enumerate(titles):
        place = (_GAP + column * (size[0] + _GAP), _HEADER - 8)
        cv2.putText(header, title, place, cv2.FONT_HERSHEY_SIMPLEX, 0.8, (40, 40, 40), 2, cv2.LINE_AA)
    return np.concatenate([header, sheet])


def write_picture(path: Path, image: np.ndarray) -> None:
    """Write an image; its folder is made.

    Args:
        path (Path): The file; its ending decides the format.
        image (np.ndarray): (H, W, 3), uint8, BGR.

    Raises:
        UserError: If it cannot be written.
    """
    import cv2

    try:
        done, content = cv2.imencode(path.suffix, np.ascontiguousarray(image))
    except cv2.error:
        done = False
    if not done:
        height, width = image.shape[:2]
        raise UserError(f'{path} cannot be written: OpenCV makes no {path.suffix} of {height}x{width} pixels in colour')
    write_file(path, content.tobytes())


def _enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    """Enlarge a BGR image smoothly; give it in RGB, as visualizers take it."""
    import mmcv

    if factor != 1:
        image = mmcv.imrescale(image, factor, interpolation='bicubic')
    return np.ascontiguousarray(image[..., ::-1])


def _repeat(maps: Tensor, factor: int) -> Tensor:
    """Enlarge (n, H, W) masks or labels by repeating pixels."""
    return maps.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
