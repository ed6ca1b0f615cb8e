"""Folders that are classes: numbered in the order of their names, so those of train and val have to be the same."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mmlavit.errors import UserError, first_few
from mmlavit_serve.predictor import find_images


def find_other_folders(dataset: Any, known: dict[str, Mapping[str, int]]) -> str:
    """Say where a dataset has other class folders than those before.

    Args:
        dataset (Any): A dataset; one whose classes are no folders has no fault.
        known (dict[str, Mapping[str, int]]): Class folders of the datasets before, by their place. It is added.

    Returns:
        str: The fault; '' if there is none.
    """
    folders = getattr(dataset, 'folder_to_idx', None)
    if not folders:
        return ''
    place = str(dataset.img_prefix)
    for other, those in known.items():
        if dict(those) != dict(folders):
            different = sorted(set(those) ^ set(folders))
            return (
                f'{place} has other class folders than {other} ({first_few(different)} only in one of them): classes '
                'are numbered in the order of their folders, so the labels would not agree; make them alike'
            )
    known[place] = folders
    return ''


def find_order_fault(dataset: Any) -> str:
    """Say that the classes of a dataset are the names of its folders in another order; '' if they are not.

    Names of another kind, such as translations, cannot be compared.
    """
    folders, classes = (
        getattr(dataset, 'folder_to_idx', None),
        (getattr(dataset, 'metainfo', None) or {}).get('classes'),
    )
    if not folders or classes is None or set(folders) != set(classes):
        return ''
    wrong = [(name, classes[number]) for name, number in folders.items() if classes[number] != name]
    if not wrong:
        return ''
    return (
        f'{dataset.img_prefix}: images in the folder {wrong[0][0]} would be called {wrong[0][1]}, since '
        'metainfo.classes has another order than the folders, which are numbered by their names: use that order'
    )


def find_unlisted(dataset: Any, entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Note image files that a dataset without an annotation file leaves out, and label maps without an image.

    Args:
        dataset (Any): Whose images are those of a folder; of others, files may be left out on purpose.
        entries (Sequence[Mapping]): What it lists.

    Yields:
        str: A note for each folder.
    """
    part = getattr(dataset, '_indices', None) is not None
    if part or getattr(dataset, 'ann_file', '') or not entries:  # the last is told elsewhere
        return
    prefix, suffix = getattr(dataset, 'data_prefix', None) or {}, getattr(dataset, 'img_suffix', None)
    if getattr(dataset, 'folder_to_idx', None):
        images, endings = dataset.img_prefix, sorted(dataset.extensions)
    else:  # others than these two choose their images otherwise
        images, endings = prefix.get('img_path') if suffix else None, [suffix]
    maps, map_suffix = prefix.get('seg_map_path'), getattr(dataset, 'seg_map_suffix', None)
    for folder, key, what, ending in (
        (images, 'img_path', f'it looks for {", ".join(map(str, endings))}', ''),
        (maps if map_suffix else None, 'seg_map_path', 'no image belongs to them', str(map_suffix)),
    ):
        if not isinstance(folder, str) or not os.path.isdir(folder):
            continue
        listed = {os.path.abspath(entry.get(key) or '') for entry in entries}
        with suppress(UserError):  # no image of any kind, which is told elsewhere
            files = [str(file) for file in find_images(Path(folder)) if str(file).endswith(ending)]
            others = [file for file in files if os.path.abspath(file) not in listed]
            if others:
                yield f'note: {folder} has {len(others):,} image files that are not used ({first_few(others)}): {what}'


def check_folders(dataset: Any) -> Iterator[str]:
    """Yield classes in a wrong order, and the class folders of a dataset that have no image of a known ending."""
    if fault := find_order_fault(dataset):
        yield fault
    folders = getattr(dataset, 'folder_to_idx', None)
    if not folders or getattr(dataset, '_indices', None) is not None:  # of a part of it, nothing follows
        return
    seen = {int(x) for i in range(len(dataset)) for x in np.ravel(dataset.get_data_info(i).get('gt_label', []))}
    empty = [name for name, number in folders.items() if number not in seen]
    if empty:
        endings = ', '.join(sorted(dataset.extensions))
        yield (
            f'note: {dataset.img_prefix} has {len(empty):,} class folders without an image ({first_few(empty)}; looked '
            f'for are {endings})'
        )
