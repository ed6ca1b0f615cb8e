"""A few of many, spread evenly."""

from __future__ import annotations

import numpy as np


def spread_evenly(length: int, count: int) -> list[int]:
    """Choose places in a list, the first and the last included.

    Args:
        length (int): Of the list.
        count (int): How many; all if the list is shorter.

    Returns:
        list[int]: Increasing numbers, from 0.
    """
    return np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()
