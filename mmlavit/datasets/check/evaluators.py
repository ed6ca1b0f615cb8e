"""Metrics that read an annotation file of their own, which has to be about the dataset's images."""

from __future__ import annotations

import os.path as osp
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.registry import METRICS

from mmlavit.errors import first_few
from mmlavit.utils.config_types import find_class
from mmlavit.utils.data_paths import is_remote

from .coco import find_class_fault, read_coco


def find_evaluator_faults(
    evaluator: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None, ann_file: str, classes: Sequence[str] | None
) -> Iterator[str]:
    """Yield where a ``CocoMetric`` compares predictions with other images, or with classes in another order.

    It finds the annotations of an image by its id, and other files have other images by the same ids. A file of its
    own may have other annotations of the same images, and more images.

    Args:
        evaluator (Mapping or Sequence[Mapping], optional): ``val_evaluator`` or ``test_evaluator``.
        ann_file (str): Annotation file of the dataset, in COCO's format.
        classes (Sequence[str], optional): ``metainfo.classes`` of the dataset; None: not known.

    Yields:
        str: A fault, with both files.
    """
    metrics = [evaluator] if isinstance(evaluator, Mapping) else evaluator or ()
    for metric in metrics:
        file = metric.get('ann_file') if isinstance(metric, Mapping) and _is_coco_metric(metric) else None
        if not file or metric.get('format_only') or is_remote(metric) or not osp.isfile(file):
            continue
        if osp.realpath(file) == osp.realpath(ann_file):
            continue
        (content, problem), (known, wrong) = read_coco(Path(file)), read_coco(Path(ann_file))
        if problem:
            yield f'{file} {problem}: get it again, or convert the annotations again'
        elif not wrong:
            yield from _compare(file, content, ann_file, known, classes)


def _is_coco_metric(metric: Mapping[str, Any]) -> bool:
    """Tell whether a metric finds annotations as mmdet's ``CocoMetric`` does."""
    from mmdet.evaluation import CocoMetric

    kind = find_class(metric, METRICS)
    return isinstance(kind, type) and issubclass(kind, CocoMetric)


def _compare(
    file: str, content: Mapping[str, Any], ann_file: str, known: Mapping[str, Any], classes: Sequence[str] | None
) -> Iterator[str]:
    """Yield what differs between the file of a metric and that of the dataset."""
    names = {image.get('id'): image.get('file_name') for image in content['images']}
    images = {image.get('id'): image.get('file_name') for image in known['images']}
    other = [name for key, name in images.items() if name is not None and names.get(key) != name]
    if other:
        yield (
            f'the evaluator reads {file}, but its dataset {ann_file}: {len(other):,} of the {len(images):,} images of '
            f'the dataset ({first_few(other)}) are not there, or by another id; set ann_file of the evaluator to that '
            'of the dataset'
        )
        return
    if classes is not None and not isinstance(classes, str):
        fault = find_class_fault([str(category.get('name')) for category in content['categories']], classes)
        if fault:
            yield f'{file} {fault}'
