"""Boxes and run lengths of masks."""

from __future__ import annotations

import numpy as np


def bounding_box(mask: np.ndarray) -> list[int]:
    """Find the tight box [x, y, width, height] around the true pixels of ``mask`` (H, W) bool."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]


def run_lengths(mask: np.ndarray) -> dict:
    """Encode ``mask`` (H, W) bool as COCO's uncompressed run lengths.

    Exact, unlike polygons, for masks with holes and parts; and it does not need pycocotools. The
    runs go down the columns and start with the number of false pixels, which may be 0.
    """
    pixels = mask.ravel(order='F')
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    runs = np.diff([0, *changes, pixels.size]).tolist()
    return dict(size=list(mask.shape), counts=[0, *runs] if pixels[0] else runs)
