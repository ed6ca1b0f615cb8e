"""A task that needs context: find the digits that are the same as the framed one (ours)."""

from __future__ import annotations

import os.path as osp
import zlib
from typing import Any, NamedTuple

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

_DIGITS = 10
_LEAST = 120  # pixels of a digit with its margin; what is smaller is a rest of a digit under others
_MARGIN = 2  # pixels around the strokes, which join strokes that are almost one
_FRAME = (255, 0, 255)  # magenta: no photograph or digit has it


class _Digits(NamedTuple):
    """The digits of one class in an image.

    Args:
        label (int): The class in the label map, from 1.
        parts (np.ndarray): (H, W), the number of the digit that a pixel belongs to.
        boxes (dict[int, tuple]): Left, top, width and height of each digit, by its number.
    """

    label: int
    parts: np.ndarray
    boxes: dict[int, tuple[int, int, int, int]]


@TRANSFORMS.register_module()
class FrameDigit(BaseTransform):
    """Draw a frame around a digit of a handwritten scene, and keep the labels of its class alone.

    What a digit is labelled depends on the frame, which may be anywhere in the image: a network has to find it, read
    the digit in it and compare all others with it. The framed digit is drawn from classes of which there is more than
    one, if there are any.

    Required keys: ``img``, (H, W, 3), and ``gt_seg_map``, (H, W), with 0 for background and 1 to 10 for the digits 0 to
    9; without labels, as in distillation, images stay as they are. Modified keys: both. In the map, digits of other
    classes than that of the framed one become 11.

    Args:
        test (bool): Whether the choice depends on the name of the image's file alone, and the framed digit is ignored
            (255), so that only those count that the network has to find. Otherwise the choice is random and the framed
            digit has its label, which teaches the network to read it.
        framed (bool): Whether the frame is drawn. Without it nothing tells which labels are right.
    """

    def __init__(self, test: bool = False, framed: bool = True) -> None:
        self.test = test
        self.framed = framed

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Draw the frame and change the labels."""
        if 'gt_seg_map' not in results:
            return results
        labels = results['gt_seg_map']
        seed = zlib.crc32(osp.basename(results['img_path']).encode()) if self.test else np.random.randint(2**31)
        rng = np.random.default_rng(seed)
        classes = [_find_digits(labels, label) for label in range(1, _DIGITS + 1)]
        classes = [digits for digits in classes if digits.boxes]
        changed = np.where((labels > 0) & (labels <= _DIGITS), _DIGITS + 1, labels).astype(labels.dtype)
        if classes:
            several = [digits for digits in classes if len(digits.boxes) > 1] or classes
            chosen = several[rng.integers(len(several))]
            number = [*chosen.boxes][rng.integers(len(chosen.boxes))]
            same = labels == chosen.label
            changed[same] = chosen.label
            if self.test:
                changed[same & (chosen.parts == number)] = 255
            if self.framed:
                x, y, width, height = chosen.boxes[number]
                image = results['img'].copy()
                cv2.rectangle(image, (x - 2, y - 2), (x + width + 1, y + height + 1), _FRAME, 3)
                results['img'] = image
        results['gt_seg_map'] = changed
        return results


def _find_digits(labels: np.ndarray, label: int) -> _Digits:
    """Find the digits of a class in a label map, (H, W)."""
    mask = cv2.dilate((labels == label).astype(np.uint8), np.ones((2 * _MARGIN + 1, 2 * _MARGIN + 1), np.uint8))
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask)
    boxes = {i: tuple(map(int, stats[i, :4])) for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] > _LEAST}
    return _Digits(label, parts, boxes)
