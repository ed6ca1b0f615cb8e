"""Metrics that read an annotation file: it has to be about the dataset's images, and pycocotools has to be able to."""

from __future__ import annotations

import os.path as osp
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.registry import METRICS

from mmlavit.errors import first_few
from mmlavit.utils.config_types import find_class, type_name
from mmlavit.utils.data_paths import find_metrics, is_remote

from .coco import find_class_fault, read_coco


def find_evaluator_faults(
    evaluator: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
    ann_file: str,
    classes: Sequence[str] | None,
    alone: bool = True,
    indices: Any = None,
) -> Iterator[str]:
    """Yield where a ``CocoMetric`` compares predictions with other images, or with classes in another order, or fails.

    It finds the annotations of an image by its id, and other files have other images by the same ids. It counts the
    objects of all images that its file has. A file of its own may have other annotations of the same images.

    Args:
        evaluator (Mapping or Sequence[Mapping], optional): ``val_evaluator`` or ``test_evaluator``.
        ann_file (str): Annotation file of the dataset, in COCO's format.
        classes (Sequence[str], optional): ``metainfo.classes`` of the dataset; None: not known.
        alone (bool): Whether there are no further datasets, which the file may have the other images of.
        indices (Any): ``indices`` of the dataset, which leave images out.

    Yields:
        str: A fault, with both files; what makes figures worthless on purpose begins with ``note:``.
    """
    several = isinstance(evaluator, Mapping) and 'metrics' in evaluator  # one for each of several datasets
    for metric in find_metrics(evaluator):
        file = metric.get('ann_file') if _is_coco_metric(metric) else None
        if not file or metric.get('format_only') or is_remote(metric) or not osp.isfile(file):
            continue
        content, problem = read_coco(Path(file))
        if problem == 'has no annotations':
            yield f'{file} has none, so nothing can be measured: set format_only=True of the evaluator, or its ann_file'
        elif problem:
            yield f'{file} {problem}: get it again, or convert the annotations again'
        else:
            yield from _find_stumbling_blocks(file, content, classes, 'segm' in metric.get('metric', 'bbox'))
            if alone and indices is not None:
                yield (
                    f'note: the dataset of {ann_file} has indices={indices}, and the evaluator counts the objects of '
                    f'all other images of {file} as missed: for figures, make an annotation file of these images'
                )
            elif not several and osp.realpath(file) != osp.realpath(ann_file):
                known, wrong = read_coco(Path(ann_file))
                if not wrong:
                    yield from _compare(file, content, ann_file, known, classes, alone)


def _is_coco_metric(metric: Mapping[str, Any]) -> bool:
    """Tell whether a metric finds annotations as mmdet's ``CocoMetric`` does."""
    from mmdet.evaluation import CocoMetric

    kind = find_class(metric, METRICS)
    return isinstance(kind, type) and issubclass(kind, CocoMetric)


def find_topk_fault(evaluator: Any, classes: int | None) -> str:
    """Say that an ``Accuracy`` asks for more classes than there are; '' if none does.

    Args:
        evaluator (Mapping or Sequence[Mapping], optional): ``val_evaluator`` or ``test_evaluator``.
        classes (int, optional): How many the model has; None: not known.

    Returns:
        str: The fault.
    """
    for metric in find_metrics(evaluator):
        if type_name(metric) != 'Accuracy' or classes is None:
            continue
        wanted = metric.get('topk', 1)
        most = max(wanted) if isinstance(wanted, (list, tuple)) and wanted else wanted
        if isinstance(most, int) and most > classes:
            return (
                f'the evaluator asks for the top-{most} accuracy, but there are {classes} classes; set '
                'val_evaluator and test_evaluator to dict(type="Accuracy", topk=(1,))'
            )
    return ''


def _find_stumbling_blocks(
    file: str, content: Mapping[str, Any], classes: Sequence[str] | None, masks: bool
) -> Iterator[str]:
    """Yield what pycocotools fails at or counts wrongly, though a model can be trained with it."""
    entries = _entries(content['annotations'])
    unnumbered = [entry for entry in entries if entry.get('id') == 0]
    if unnumbered:  # one object, which hardly matters among many
        yield (
            f"note: {file}: {len(unnumbered):,} annotations have the id 0, which COCO's evaluation takes for no "
            'object: number them from 1'
        )
    kinds = {
        'annotations have no area or bbox, which the evaluation needs: add them': lambda e: (
            e.get('area') is None or e.get('bbox') is None
        ),
        'annotations have an id that is no number, which the evaluation needs': lambda e: (
            'id' in e and not isinstance(e['id'], (int, float))
        ),
        'annotations have no iscrowd of 0 or 1, which the evaluation needs: add it (0)': lambda e: (
            e.get('iscrowd') not in (0, 1)
        ),
    }
    if masks:
        every = classes is None or isinstance(classes, str)
        categories = _entries(content['categories'])
        measured = {one.get('id') for one in categories if every or one.get('name') in classes}
        kinds['annotations have a first polygon of fewer than three points, or one with half a point: remove it'] = (
            _has_bad_polygon
        )
        kinds['annotations have no mask, which the evaluation needs: add it, or remove them'] = lambda e: (
            e.get('category_id') in measured and not e.get('segmentation')
        )
    for fault, applies in kinds.items():
        places = [str(entry.get('id')) for entry in entries if applies(entry)]
        if places:
            yield f'{file}: {len(places):,} {fault} (ids {first_few(places)})'


def _entries(entries: Iterable[Any]) -> list[Mapping[str, Any]]:
    """Leave out what is no entry, which the check of the dataset names."""
    return [entry for entry in entries if isinstance(entry, Mapping)]


def _is_same_file(name: Any, other: Any) -> bool:
    """Tell whether two names may be of one file: the folder may be in the name or in ``data_prefix``."""
    name, other = f'/{name}', f'/{other}'
    return name.endswith(other) or other.endswith(name)


def _has_bad_polygon(entry: Mapping[str, Any]) -> bool:
    """Tell whether any part of a mask cannot be read; training leaves such parts out."""
    mask = entry.get('segmentation')
    if not isinstance(mask, list) or not mask:
        return False
    # Four numbers in the first part have the others read as boxes.
    return any(not isinstance(part, list) or len(part) % 2 for part in mask) or len(mask[0]) < 6


def _compare(
    file: str,
    content: Mapping[str, Any],
    ann_file: str,
    known: Mapping[str, Any],
    classes: Sequence[str] | None,
    alone: bool,
) -> Iterator[str]:
    """Yield what differs between the file of a metric and that of the dataset."""
    names, images = (
        {one.get('id'): one.get('file_name') for one in _entries(file['images'])} for file in (content, known)
    )
    other = [name for key, name in images.items() if name is not None and not _is_same_file(name, names.get(key))]
    if other:
        yield (
            f'the evaluator reads {file}, but its dataset {ann_file}: {len(other):,} of the {len(images):,} images of '
            f'the dataset ({first_few(other)}) are not there, or by another id; set ann_file of the evaluator to that '
            'of the dataset'
        )
        return
    wanted = {
        category.get('id')
        for category in _entries(content['categories'])
        if classes is None or category.get('name') in classes
    }
    with_objects = {
        entry.get('image_id')
        for entry in _entries(content['annotations'])
        if entry.get('category_id') in wanted and not entry.get('iscrowd')
    }
    more = [str(name) for key, name in names.items() if key not in images and key in with_objects]
    if alone and more:
        yield (
            f'the evaluator reads {file}, and counts the objects of {len(more):,} images there ({first_few(more)}) as '
            f'missed, which its dataset {ann_file} does not have; set ann_file of the evaluator to that of the dataset'
        )
    if classes is not None and not isinstance(classes, str):
        fault = find_class_fault(content['categories'], classes)
        if fault:
            yield f'{file} {fault}'
