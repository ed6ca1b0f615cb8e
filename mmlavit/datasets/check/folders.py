"""Folders that are classes: numbered in the order of their names, so those of train and val have to be the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mmlavit.errors import first_few


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


def check_folders(dataset: Any) -> Iterator[str]:
    """Yield the class folders of a dataset that have no image of a known ending."""
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
