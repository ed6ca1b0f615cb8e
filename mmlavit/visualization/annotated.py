"""Annotations as results, so that they are drawn as predictions are, in the same colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement

from mmlavit.datasets.check.config import build_dataset
from mmlavit.utils.data_paths import require_data
from mmlavit.utils.spread import spread_evenly
from mmlavit.utils.toolbox import find_scope, load_toolbox
from mmlavit_serve.drawing import Canvas
from mmlavit_serve.results import Classification, Detections, Result, Segmentation


class Example(NamedTuple):
    """An image of a dataset.

    Args:
        path (Path): Its file.
        image (np.ndarray): (H, W, 3), uint8, BGR.
        annotation (Result): What is annotated, in pixels of the file.
    """

    path: Path
    image: np.ndarray
    annotation: Result


class _AnnotatedObjects(Detections):
    """Objects whose scores tell nothing."""

    def caption(self, index: int) -> str:
        """Name an object."""
        return self.name(self.labels[index])


@dataclass(frozen=True)
class _AnnotatedClass(Classification):
    """The class of an image."""

    def _draw(self, canvas: Canvas) -> None:
        canvas.write([self.name(int(self.scores.argmax()))])


def read_examples(cfg: Config, split: Literal['train', 'val', 'test'], number: int) -> Iterator[Example]:
    """Read images of a dataset with their annotations, spread evenly over it.

    Args:
        cfg (Config): A config of any of the three toolboxes, whose pipeline reads annotations in pixels of the file, as
            those of tests do.
        split (str): Whose images: 'train', 'val' or 'test'.
        number (int): How many at most.

    Yields:
        Example: One after another.

    Raises:
        UserError: If the data is not there, or the config is for none of the toolboxes.
        EnvironmentProblem: If the toolbox cannot work as installed.
    """
    scope = find_scope(cfg)
    require_data(cfg, [split])
    load_toolbox(scope)
    with DefaultScope.overwrite_default_scope(scope):
        dataset = build_dataset(cfg[f'{split}_dataloader'].dataset, cfg.model)
    for index in spread_evenly(len(dataset), number):
        sample = dataset[index]['data_samples']
        image = cv2.imread(sample.img_path)
        yield Example(Path(sample.img_path), image, as_result(sample, dataset.metainfo, image.shape[:2]))


def as_result(sample: BaseDataElement, meta: dict, shape: tuple[int, int]) -> Result:
    """Turn the annotations of a data sample into a result.

    Args:
        sample (BaseDataElement): A data sample of mmdet, mmseg or mmpretrain.
        meta (dict): The ``metainfo`` of the dataset.
        shape (tuple[int, int]): Height and width of the image.

    Returns:
        Result: Objects with a score of 1, a class with a score of 1, or a class for each pixel.
    """
    classes: Sequence[str] = meta['classes']
    if 'gt_sem_seg' in sample and 'gt_instances' not in sample:
        return Segmentation(shape, classes, sample.gt_sem_seg.data[0].numpy(), meta.get('palette'))
    if 'gt_label' in sample:
        return _AnnotatedClass(shape, classes, np.eye(len(classes))[int(sample.gt_label)])
    found = sample.gt_instances
    boxes = getattr(found.bboxes, 'tensor', found.bboxes).numpy()  # mmdet may wrap them
    masks = found.masks.to_ndarray().astype(bool) if 'masks' in found else None
    return _AnnotatedObjects(shape, classes, boxes, np.ones(len(boxes)), found.labels.numpy(), masks)
