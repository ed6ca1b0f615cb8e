"""What is wrong with the boxes that a detection dataset has read, of files in other formats than COCO's."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from mmlavit.errors import first_few

_NO_AREA = 'has a box without area, which is an object all the same and can make losses NaN: correct or remove it'

_REACHES_OUT = 'has a box that reaches out of its image, as those of hidden people in CrowdHuman may'


def find_box_faults(entries: Sequence[Mapping[str, Any]], classes: Sequence[str] | None, place: str) -> Iterator[str]:
    """Yield the faults of boxes, and names of objects that are no classes.

    Args:
        entries (Sequence[Mapping]): What ``get_data_info`` gives: 'instances' with 'bbox' (x1, y1, x2, y2), where they
            have some; 'width' and 'height' of the image; 'xml_path' of PASCAL VOC's annotations.
        classes (Sequence[str], optional): ``metainfo.classes`` of the dataset.
        place (str): What messages call the dataset.

    Yields:
        str: A finding for each kind of fault; what is left out on purpose begins with ``note:``.
    """
    found: dict[str, list[str]] = {}
    names: dict[str, int] = {}
    for entry in entries:
        for instance in entry.get('instances') or ():
            if instance.get('ignore_flag'):
                continue
            fault = _find_fault(instance.get('bbox'), entry.get('width'), entry.get('height'))
            if fault:
                found.setdefault(fault, []).append(str(entry.get('img_path')))
        for name in _read_names(entry.get('xml_path')) if classes is not None else ():
            if name not in classes:
                names[name] = names.get(name, 0) + 1
    for fault, images in found.items():
        note = 'note: ' if fault == _REACHES_OUT else ''
        yield f'{note}{place}: {len(images):,} objects: each {fault} ({first_few(images)})'
    if names:
        yield (
            f'note: {place} has {sum(names.values()):,} objects that metainfo.classes does not name '
            f'({first_few(sorted(names))}): left out'
        )


def _find_fault(box: Any, width: float | None, height: float | None) -> str:
    if box is None:
        return ''
    try:
        x1, y1, x2, y2 = map(float, box)
    except (TypeError, ValueError):
        return 'has no box of four numbers: correct or remove it'
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        return 'has no box of four finite numbers: correct or remove it'
    if x2 <= x1 or y2 <= y1:
        return _NO_AREA
    if not width or not height:
        return ''
    if lies_outside((x1, y1, x2, y2), width, height):
        return 'has a box outside of its image: correct or remove it'
    return _REACHES_OUT if reaches_out((x1, y1, x2, y2), width, height) else ''


def lies_outside(corners: tuple[float, float, float, float], width: float, height: float) -> bool:
    """Tell whether no part of a box (x1, y1, x2, y2) is in its image."""
    x1, y1, x2, y2 = corners
    return min(x2, width) <= max(x1, 0) or min(y2, height) <= max(y1, 0)


def reaches_out(corners: tuple[float, float, float, float], width: float, height: float) -> bool:
    """Tell whether a box (x1, y1, x2, y2) ends more than a pixel outside of its image."""
    x1, y1, x2, y2 = corners
    return x1 < -1 or y1 < -1 or x2 > width + 1 or y2 > height + 1


def _read_names(file: Any) -> Iterator[str]:
    """Yield the names of the objects in an annotation file of PASCAL VOC; none of what is elsewhere."""
    if isinstance(file, (str, os.PathLike)) and os.path.isfile(file):
        for node in ElementTree.parse(file).iter('object'):
            yield str(node.findtext('name'))
