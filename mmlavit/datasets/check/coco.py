"""What is wrong with an annotation file in COCO's format: each kind of fault in one line, with the first places."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mmlavit.errors import first_few

from .boxes import lies_outside, reaches_out

# 'polygons': LoadAnnotations keeps polygons, and has no use for run lengths.
Masks = Literal['none', 'any', 'polygons']

_FIX = 'correct or remove them'
_FEW = 1e-3  # of all objects


def reads_coco(kind: type) -> bool:
    """Tell whether a dataset reads its file as mmdet's ``CocoDataset`` does.

    LVIS, Objects365 and panoptic datasets have files of that format, and rules of their own for names and order.

    Args:
        kind (type): Class of the dataset.

    Returns:
        bool: True for ``CocoDataset``, and for what takes over how it reads.
    """
    if not hasattr(kind, 'COCOAPI'):
        return False
    from mmdet.datasets import CocoDataset

    return all(getattr(kind, name) is getattr(CocoDataset, name) for name in ('load_data_list', 'parse_data_info'))


def read_coco(file: Path) -> tuple[dict, str]:
    """Read an annotation file.

    Args:
        file (Path): The file.

    Returns:
        tuple[dict, str]: Its content, and what is wrong with it as a whole, '' if nothing.
    """
    if not file.is_file():
        return {}, 'does not exist'
    try:
        content = json.loads(file.read_bytes())
    except ValueError:
        return {}, 'is cut off or damaged'
    except OSError as error:
        return {}, f'cannot be read ({error.strerror})'
    if not isinstance(content, dict):
        return {}, f'has a {type(content).__name__} at its top, expected images, annotations and categories'
    missing = [key for key in ('images', 'annotations', 'categories') if not isinstance(content.get(key), list)]
    return content, f'has no {", ".join(missing)}' if missing else ''


def check_coco_file(
    file: Path, classes: Sequence[str] | None, masks: Masks = 'none', test: bool = False
) -> Iterator[str]:
    """Yield what is wrong with the annotations of a dataset.

    Args:
        file (Path): In COCO's format.
        classes (Sequence[str], optional): ``metainfo.classes`` of the dataset; None: not known.
        masks (str): Which masks are used.
        test (bool): Whether it is for tests, which some images have no annotations for (COCO's test-dev).

    Yields:
        str: A finding; what is left out on purpose begins with ``note:``.
    """
    content, problem = read_coco(file)
    if test and (problem == 'has no annotations' or (not problem and content['images'] and not content['annotations'])):
        yield f'note: {file} has no annotations: a model can predict on its images, but cannot be measured'
        return
    if problem:
        yield f'{file} {problem}: get it again, or convert the annotations again'
        return
    if not content['images'] or not content['annotations']:
        yield (
            f'{file} has {len(content["images"])} images and {len(content["annotations"])} annotations, expected '
            'some of both: convert the annotations again'
        )
        return
    for what in ('images', 'annotations', 'categories'):
        entries = content[what]
        odd = [i for i, entry in enumerate(entries) if not _is_entry(entry)]
        if odd:
            yield f'{file} has {what} that are no objects with plain ids (number {first_few(odd)}, from 0): {_FIX}'
            return
    yield from _check_categories(file, content['categories'], classes)
    for what, article, key in (('images', 'an', 'id'), ('images', 'a', 'file_name'), ('annotations', 'an', 'id')):
        counts = Counter(str(entry.get(key)) for entry in content[what])
        twice = [value for value, count in counts.items() if count > 1]
        yield from _tell(file, twice, f'{what} have {article} {key} that others have, too', 'give each its own')
    keys = ('file_name', 'height', 'width', 'id')
    bad = [
        str(entry.get('file_name', entry.get('id')))
        for entry in content['images']
        if any(k not in entry for k in keys) or not _are_numbers([entry['height'], entry['width']])
    ]
    yield from _tell(file, bad, f'images lack one of {", ".join(keys)}, or have no numbers there', 'add it')
    if not bad:
        yield from _check_objects(file, content, classes, masks)


def find_class_fault(categories: Iterable[Any], classes: Sequence[str]) -> str:
    """Say why mmdet would give objects the labels of other classes; '' if it would not.

    mmdet numbers the classes that the file has, in the order of the file, whatever the order of ``metainfo.classes``.

    Args:
        categories (Iterable[Mapping]): ``categories`` of the file, in its order.
        classes (Sequence[str]): ``metainfo.classes``.

    Returns:
        str: What is wrong, with what to do.
    """
    if repeated := _repeated(classes):
        return f'is read with metainfo.classes that name {first_few(repeated)} more than once: name each class once'
    categories = [category for category in categories if isinstance(category, Mapping)]
    names = [str(category.get('name')) for category in categories]
    missing = [name for name in classes if name not in names]
    if missing:
        return (
            f'has no categories {first_few(missing)}, which metainfo.classes names ({len(missing)} of {len(classes)}); '
            f'it has {first_few(names)}: set metainfo.classes of the dataset to names of the file'
        )
    used = [name for name in names if name in classes]
    if repeated := _repeated(used):
        return f'has several categories of one name ({first_few(repeated)}): join them'
    if repeated := _repeated(str(category.get('id')) for category in categories):
        return f'has several categories of one id ({first_few(repeated)}): give each its own'
    if used != list(classes):
        first = next(i for i, pair in enumerate(zip(used, classes, strict=True)) if pair[0] != pair[1])
        return (
            f'has its categories in another order than metainfo.classes ({used[first]!r} where that has '
            f'{classes[first]!r}), and mmdet numbers them by the file: use the order of the file'
        )
    return ''


def _check_categories(
    file: Path, categories: Sequence[Mapping[str, Any]], classes: Sequence[str] | None
) -> Iterator[str]:
    """Yield what does not fit between categories and classes."""
    if classes is not None and not isinstance(classes, str):  # a string is told elsewhere
        fault = find_class_fault(categories, classes)
        if fault:
            yield f'{file} {fault}'
        names = [str(category.get('name')) for category in categories]
        unused = [name for name in names if name not in classes]
        if unused and not fault:
            yield f'note: {file} has categories that metainfo.classes does not name ({first_few(unused)}): left out'


def _check_objects(
    file: Path, content: Mapping[str, Any], classes: Sequence[str] | None, masks: Masks
) -> Iterator[str]:
    """Yield what is wrong with single annotations."""
    images = {image['id']: image for image in content['images']}
    known = classes is not None and not isinstance(classes, str)
    # Whether the dataset has a category.
    categories = {one.get('id'): not known or one.get('name') in classes for one in content['categories']}
    found: dict[tuple[str, str], list[str]] = {}
    used = set()
    for number, entry in enumerate(content['annotations']):
        image = images.get(entry.get('image_id'))
        used.add(entry.get('image_id'))
        place = f'annotation {entry.get("id", f"number {number}")}' + (f' of {image["file_name"]}' if image else '')
        for fault in _find_faults(entry, image, categories, masks):
            found.setdefault(fault, []).append(place)
    for (fault, fix), places in found.items():
        # COCO's own file has two objects whose box has no height.
        few = 'left out' in fault and len(places) < _FEW * len(content['annotations'])
        yield from (('note: ' if few else '') + line for line in _tell(file, places, fault, fix))
    empty = [image['file_name'] for key, image in images.items() if key not in used]
    if empty:
        yield (
            f'note: {file}: {len(empty):,} of {len(images):,} images have no objects ({first_few(empty)}): background, '
            'or left out with filter_cfg=dict(filter_empty_gt=True)'
        )


def _find_faults(
    entry: Mapping[str, Any], image: Mapping[str, Any] | None, categories: Mapping[Any, bool], masks: Masks
) -> Iterator[tuple[str, str]]:
    """Yield the faults of an annotation, each with what to do."""
    if image is None:
        yield 'annotations belong to no image of the file', 'correct image_id, or remove them'
        return
    if entry.get('category_id') not in categories:
        yield 'annotations have a category_id that no category has', 'correct it, or add the category'
    ignored = entry.get('ignore')
    missing = [key for key in ('id', 'area') if entry.get(key) is None and not (ignored and key == 'area')]
    if missing:
        yield f'annotations have no {", ".join(missing)}', 'add it'
    if ignored:  # mmdet reads nothing more of it
        return
    area = 1 if 'area' in missing else entry['area']
    if not _are_numbers([area]):
        yield 'annotations have an area that is no number', _FIX
        return
    box = entry.get('bbox')
    if not _are_numbers(box) or len(box) != 4:
        yield 'annotations have no box of four finite numbers (x, y, width, height)', _FIX
        return
    if not categories.get(entry.get('category_id'), True):  # nor of these
        return
    x, y, w, h = box
    if w < 1 or h < 1 or area <= 0:
        advice = f'{_FIX} (COCO has pixels; numbers from 0 to 1 are to be multiplied by the size of the image)'
        yield 'objects have no area, or a box below one pixel, and are left out in training', advice
        return
    if lies_outside((x, y, x + w, y + h), image['width'], image['height']):
        yield 'objects have a box outside of their image, and are left out in training', _FIX
    elif reaches_out((x, y, x + w, y + h), image['width'], image['height']):
        advice = 'cut it off there, or if it is two corners, make it x, y, width and height, as COCO has it'
        yield 'objects have a box that reaches out of their image', advice
    mask = entry.get('segmentation')
    if masks == 'polygons' and isinstance(mask, Mapping) and not entry.get('iscrowd'):
        advice = 'remove poly2mask=False from LoadAnnotations'
        yield 'objects have run-length masks, and poly2mask=False leaves them out in training', advice
    elif masks != 'none' and not is_mask(mask, image['height'], image['width']):
        yield 'objects have no mask with an area, which the training of masks needs', 'add it, or remove the objects'


def is_mask(mask: Any, height: int, width: int) -> bool:
    """Tell whether it is a mask with an area: a polygon at least, or run lengths of the image's size.

    Args:
        mask (Any): ``segmentation`` of an annotation.
        height (int): Of the image.
        width (int): Of the image.

    Returns:
        bool: Whether it is one.
    """
    if isinstance(mask, Mapping):
        runs = _covering_runs(mask, height, width)
        return runs is not None and sum(runs[1::2]) > 0
    if not isinstance(mask, list):
        return False
    return any(_are_numbers(part) and len(part) >= 6 and len(part) % 2 == 0 and _area(part) > 0 for part in mask)


def covers(mask: Mapping[str, Any], height: int, width: int) -> bool:
    """Tell whether run lengths are of an image of that size, and cover each pixel once.

    Args:
        mask (Mapping): In COCO's format, compressed or not.
        height (int): Of the image.
        width (int): Of the image.

    Returns:
        bool: False if they are damaged. Empty masks cover the image, too.
    """
    return _covering_runs(mask, height, width) is not None


def _covering_runs(mask: Mapping[str, Any], height: int, width: int) -> list[int] | None:
    """Give the run lengths of a mask; None if they do not cover an image of that size."""
    try:
        size, runs = [int(side) for side in mask['size']], _runs(mask)
    except (KeyError, TypeError, ValueError):
        return None
    whole = size == [height, width] and min(runs, default=-1) >= 0 and sum(runs) == height * width
    return runs if whole else None


def _runs(mask: Mapping[str, Any]) -> list[int]:
    """Give the run lengths of a mask as numbers; a ValueError or TypeError if they are none."""
    counts = mask['counts']
    if isinstance(counts, bytes):
        counts = counts.decode('ascii')
    return _uncompress(counts) if isinstance(counts, str) else [int(run) for run in counts]


def _uncompress(text: str) -> list[int]:
    """Give the run lengths in COCO's compressed form; a ValueError if the text is no such form.

    Each character has five bits of a number, lowest first, and whether more follow. From the third on, a number is the
    difference to the last but one. https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c, rleFrString.
    """
    runs, value, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f'{character!r} is not part of compressed run lengths')
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:  # negative
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError('the run lengths are cut off')
    return runs


def _area(polygon: Sequence[float]) -> float:
    """Area of a polygon x1, y1, x2, y2, ..."""
    xs, ys = polygon[::2], polygon[1::2]
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2


def _repeated(values: Iterable[Any]) -> list[str]:
    """List what is there more than once."""
    return [str(value) for value, count in Counter(values).items() if count > 1]


def _is_entry(entry: Any) -> bool:
    ids = ('id', 'image_id', 'category_id')
    return isinstance(entry, Mapping) and all(isinstance(entry.get(key), Hashable) for key in ids)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(v, (int, float)) and math.isfinite(v) for v in values)


def _tell(file: Path, places: Sequence[str], fault: str, fix: str) -> Iterator[str]:
    """Yield one line about all places with a fault, if there are any."""
    if places:
        yield f'{file}: {len(places):,} {fault} ({first_few(places)}): {fix}'
