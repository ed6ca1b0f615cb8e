"""Boxes around masks."""

from __future__ import annotations

import numpy as np


def bounding_box(mask: np.ndarray) -> list[int]:
    """Find the tight box [x, y, width, height] around the true pixels of ``mask`` (H, W) bool."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
