"""What a model found in an image: described, as JSON and drawn. The same for every runtime."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .drawing import Canvas

_MAX_NAMED = 8  # in a description
_MAX_RECORDED = 5  # classes of a classification
_MIN_SHARE = 0.001  # of the pixels


@dataclass(frozen=True)
class Result(ABC):
    """What was found in one image.

    Args:
        shape (tuple[int, int]): Height and width of the image.
        classes (Sequence[str], optional): Names of the classes; None: their numbers are shown.
    """

    shape: tuple[int, int]
    classes: Sequence[str] | None

    @abstractmethod
    def describe(self) -> str:
        """Say in a few words what was found."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return what was found, the most important first, as values for JSON."""

    @abstractmethod
    def _draw(self, canvas: Canvas) -> None:
        """Draw what was found."""

    def to_json(self) -> str:
        """Return what was found as one line of JSON."""
        return json.dumps(self.to_dict())

    def draw(self, image: np.ndarray, enlarge: int = 1) -> np.ndarray:
        """Draw what was found over its image, both ``enlarge`` times as large.

        Args:
            image (np.ndarray): The image, (H, W, 3), uint8, BGR; it is not changed.
            enlarge (int): Factor.

        Returns:
            np.ndarray: The drawn image, (H, W, 3), uint8, BGR.
        """
        canvas = Canvas(image, enlarge)
        self._draw(canvas)
        return canvas.image

    def name(self, label: int) -> str:
        """Name a class; by its number, if there is no name for it."""
        return self.classes[label] if self.classes and label < len(self.classes) else str(label)


@dataclass(frozen=True)
class Classification(Result):
    """One class for the image.

    Args:
        scores (np.ndarray): Probability of each class, (classes,).
    """

    scores: np.ndarray

    def _best(self, count: int) -> list[int]:
        return np.argsort(-self.scores, kind='stable')[:count].tolist()

    def describe(self) -> str:
        """Name the three most likely classes."""
        return ', '.join(f'{self.name(label)} {self.scores[label]:.2f}' for label in self._best(3))

    def to_dict(self) -> dict[str, Any]:
        """List the most likely classes, at most five, with their scores."""
        entries = [
            {'class': self.name(label), 'label': label, 'score': round(float(self.scores[label]), 4)}
            for label in self._best(_MAX_RECORDED)
        ]
        return dict(classes=entries)

    def _draw(self, canvas: Canvas) -> None:
        canvas.write([f'{self.name(label)} {self.scores[label]:.2f}' for label in self._best(3)])


@dataclass(frozen=True)
class Detections(Result):
    """Objects, the highest score first.

    Args:
        boxes (np.ndarray): Corners (x1, y1, x2, y2) in pixels, (N, 4).
        scores (np.ndarray): Scores, (N,).
        labels (np.ndarray): Numbers of the classes, (N,).
        masks (np.ndarray, optional): Pixels of each object, (N, H, W) bool; None: the model has none.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def caption(self, index: int) -> str:
        """Name an object, with its score."""
        return f'{self.name(self.labels[index])} {self.scores[index]:.2f}'

    def describe(self) -> str:
        """Count the objects and name those with the highest scores."""
        if not len(self):
            return 'no objects'
        names = [self.caption(i) for i in range(min(len(self), _MAX_NAMED))]
        rest = ', ...' if len(self) > _MAX_NAMED else ''
        return f'{len(self)} object{"s" if len(self) > 1 else ""}: {", ".join(names)}{rest}'

    def to_dict(self) -> dict[str, Any]:
        """List the objects: class, score, box (x1, y1, x2, y2) and mask."""
        objects = []
        for i, label in enumerate(self.labels.tolist()):
            box = [round(value, 2) for value in self.boxes[i].tolist()]
            score = round(float(self.scores[i]), 4)
            entry = {'class': self.name(label), 'label': label, 'score': score, 'box': box}
            if self.masks is not None:
                entry['mask'] = run_lengths(self.masks[i])
            objects.append(entry)
        return dict(objects=objects)

    def _draw(self, canvas: Canvas) -> None:
        for i in reversed(range(len(self))):  # the best on top
            if self.masks is not None:
                canvas.fill(self.masks[i], int(self.labels[i]))
        for i in reversed(range(len(self))):
            canvas.box(self.boxes[i], int(self.labels[i]), self.caption(i))


@dataclass(frozen=True)
class Segmentation(Result):
    """A class for each pixel.

    Args:
        labels (np.ndarray): Numbers of the classes, (H, W).
        palette (Sequence[Sequence[int]], optional): Colour (R, G, B) of each class.
    """

    labels: np.ndarray
    palette: Sequence[Sequence[int]] | None = None

    @cached_property
    def _counts(self) -> list[tuple[int, int]]:
        """Classes in the image and their pixels, the largest first."""
        found, counts = np.unique(self.labels, return_counts=True)
        return sorted(zip(found.tolist(), counts.tolist(), strict=True), key=lambda entry: -entry[1])

    def describe(self) -> str:
        """Give the share of the image that each class covers."""
        shares = [(label, count / self.labels.size) for label, count in self._counts[:_MAX_NAMED]]
        return ', '.join(f'{self.name(label)} {share:.1%}' for label, share in shares if share >= _MIN_SHARE)

    def to_dict(self) -> dict[str, Any]:
        """List the classes in the image, the largest first: share of the pixels and mask."""
        classes = []
        for label, count in self._counts:
            mask = run_lengths(self.labels == label)
            share = round(count / self.labels.size, 4)
            classes.append({'class': self.name(label), 'label': label, 'share': share, 'mask': mask})
        return dict(classes=classes)

    def _draw(self, canvas: Canvas) -> None:
        for label, _ in self._counts:
            canvas.fill(self.labels == label, label, self._colour(label), outlined=False)
        entries = [(self.name(label), label) for label, count in self._counts if count >= 0.01 * self.labels.size]
        canvas.legend([(name, label, self._colour(label)) for name, label in entries])

    def _colour(self, label: int) -> tuple[int, ...] | None:
        known = self.palette is not None and label < len(self.palette)
        return tuple(map(int, self.palette[label])) if known else None


def run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """Encode a mask (H, W) bool as COCO's uncompressed run lengths.

    Exact, unlike polygons, for masks with holes and parts; and it does not need pycocotools. The runs go down the
    columns and start with the number of false pixels, which may be 0.
    """
    pixels = mask.ravel(order='F')
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    runs = np.diff([0, *changes, pixels.size]).tolist()
    return dict(size=list(mask.shape), counts=[0, *runs] if pixels[0] else runs)


def paste_masks(masks: np.ndarray, boxes: np.ndarray, shape: tuple[int, int], threshold: float) -> np.ndarray:
    """Put masks of boxes into the image, as mmdet does: bilinear, between the centres of pixels.

    Args:
        masks (np.ndarray): Probabilities inside of the boxes, (N, s, s).
        boxes (np.ndarray): Boxes (x1, y1, x2, y2) in pixels of the image, (N, 4).
        shape (tuple[int, int]): Height and width of the image.
        threshold (float): Probability from which a pixel belongs to the object.

    Returns:
        np.ndarray: Masks (N, H, W), bool.
    """
    pasted = np.zeros((len(masks), *shape), bool)
    for mask, (x1, y1, x2, y2), out in zip(masks, boxes.astype(np.float32), pasted, strict=True):
        rows, top = _weights(y1, y2, shape[0], mask.shape[0])
        columns, left = _weights(x1, x2, shape[1], mask.shape[1])
        inside = rows @ mask.astype(np.float32) @ columns.T >= threshold
        out[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return pasted


def _weights(first: np.float32, last: np.float32, length: int, cells: int) -> tuple[np.ndarray, int]:
    """Bilinear weights (pixels, cells) of the pixels of an axis that a box touches, and the first of these."""
    start = int(max(np.floor(first) - 1, 0))
    stop = int(min(np.ceil(last) + 1, length))
    centre = np.arange(start, max(stop, start), dtype=np.float32) + np.float32(0.5)
    with np.errstate(divide='ignore', invalid='ignore'):
        place = (centre - first) / (last - first) * cells - np.float32(0.5)
    place = np.where(np.isinf(place), np.float32(cells / 2 - 0.5), place)  # a box without extent
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells, dtype=np.float32))), start
