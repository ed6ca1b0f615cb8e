"""Boxes, masks and names drawn over an image by OpenCV."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

Colour = tuple[int, int, int]

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_MASK_SHARE = 0.45  # of a mask's colour; the rest is the image
_GOLDEN = 0.618034  # turns of the colour wheel between neighbouring classes
_STRIP = 256  # rows that are tinted together


def class_colour(label: int) -> Colour:
    """Give a class a colour (R, G, B) that differs from those of its neighbours."""
    hue = round(label * _GOLDEN % 1 * 179)
    lightness = 150 - 40 * (label // 10 % 2)
    rgb = cv2.cvtColor(np.uint8([[[hue, lightness, 230]]]), cv2.COLOR_HLS2RGB)[0, 0]
    return tuple(int(value) for value in rgb)


class Canvas:
    """An image to draw on.

    Args:
        image (np.ndarray): The image, (H, W, 3), uint8, BGR; a copy is drawn on.
        enlarge (int): Factor; what is drawn is enlarged with the image, but lines and letters are not.
    """

    def __init__(self, image: np.ndarray, enlarge: int) -> None:
        self.factor = enlarge
        if enlarge == 1:
            self.image = np.ascontiguousarray(image).copy()
        else:
            self.image = cv2.resize(image, None, fx=enlarge, fy=enlarge, interpolation=cv2.INTER_CUBIC)
        side = max(self.image.shape[:2])
        self.line = max(1, round(side / 500))
        self.scale = 0.35 + side / 1400  # of letters: readable when the drawn image is shown at half its size
        self.stroke = max(1, round(self.scale * 1.4))

    def fill(self, mask: np.ndarray, label: int, colour: Colour | None = None, outlined: bool = True) -> None:
        """Tint the pixels of a mask (H, W).

        Args:
            mask (np.ndarray): Pixels of the image, bool.
            label (int): Class, which decides the colour.
            colour (tuple[int, int, int], optional): Another colour, (R, G, B).
            outlined (bool): Whether to draw the border.
        """
        bgr = (colour or class_colour(label))[::-1]
        mask = mask.astype(np.uint8)
        if self.factor != 1:
            mask = cv2.resize(mask, None, fx=self.factor, fy=self.factor, interpolation=cv2.INTER_NEAREST)
        for top in range(0, len(mask), _STRIP):  # in numbers of 64 bits, a whole image could be too large
            strip, inside = self.image[top : top + _STRIP], mask[top : top + _STRIP].astype(bool)
            tinted = strip[inside] * (1 - _MASK_SHARE) + np.array(bgr) * _MASK_SHARE
            strip[inside] = tinted.round().astype(np.uint8)
        if outlined:
            outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(self.image, outlines, -1, bgr, self.line)

    def box(self, corners: np.ndarray, label: int, text: str) -> None:
        """Draw a box (x1, y1, x2, y2) of the image with a text at its upper left corner."""
        colour = class_colour(label)
        x1, y1, x2, y2 = (round(float(value) * self.factor) for value in corners)
        cv2.rectangle(self.image, (x1, y1), (x2, y2), colour[::-1], self.line)
        height = self._text_size(text)[1]
        self._text(text, x1, y1 - height if y1 >= height else y1, colour)

    def write(self, lines: Sequence[str]) -> None:
        """Write lines into the upper left corner."""
        top = 0
        for text in lines:
            top += self._text(text, 0, top, (30, 30, 30))

    def legend(self, entries: Sequence[tuple[str, int, Colour | None]]) -> None:
        """Write names of classes in their colours into the upper left corner."""
        top = 0
        for text, label, colour in entries:
            top += self._text(text, 0, top, colour or class_colour(label))

    def _text_size(self, text: str) -> tuple[int, int]:
        (width, height), below = cv2.getTextSize(text, _FONT, self.scale, self.stroke)
        return width + 4, height + below + 2

    def _text(self, text: str, left: int, top: int, colour: Colour) -> int:
        """Write a text on its colour; give its height."""
        width, height = self._text_size(text)
        left = max(0, min(left, self.image.shape[1] - width))
        top = max(0, min(top, self.image.shape[0] - height))
        cv2.rectangle(self.image, (left, top), (left + width, top + height), colour[::-1], cv2.FILLED)
        red, green, blue = colour
        ink = (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
        below = cv2.getTextSize(text, _FONT, self.scale, self.stroke)[1]
        place = (left + 2, top + height - below)
        cv2.putText(self.image, text, place, _FONT, self.scale, ink, self.stroke, cv2.LINE_AA)
        return height
