"""Videos, read frame by frame."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from .errors import UserError, is_file

VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm')

_ENOUGH = 0.95  # of the frames that a file says it has: some say a few too many


def is_video(path: Path) -> bool:
    """Tell by its name whether a file is a video."""
    return path.suffix.lower() in VIDEOS and is_file(path)


class Video:
    """A video; iterating gives its frames, (H, W, 3) uint8 in BGR, from the first on and once.

    Args:
        path (Path): The file.

    Attributes:
        path (Path): The file.
        fps (float): Frames in a second.
        width (int): Columns of a frame.
        height (int): Rows of a frame.
        frames (int): How many; 0 where the file does not say.

    Raises:
        UserError: If it cannot be read as a video.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._capture = cv2.VideoCapture(os.fspath(path))
        except cv2.error as error:  # such as a name that is not UTF-8
            raise UserError(f'{os.fsencode(path)} cannot be opened as a video by OpenCV; rename it') from error
        self.path, self._read = path, 0
        self.fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.width, self.height, self.frames = (
            max(0, int(self._capture.get(key)))
            for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_COUNT)
        )
        if not (self._capture.isOpened() and self.fps and self.width and self.height):
            raise UserError(
                f'{path} cannot be read as a video; expected one that OpenCV decodes, such as H.264 in .mp4'
            )

    def __iter__(self) -> Iterator[np.ndarray]:
        """Read the frames that are left."""
        while True:
            there, frame = self._capture.read()
            if not there:
                return
            self._read += 1
            yield frame

    @property
    def problem(self) -> str | None:
        """What is wrong when the frames are at an end and there were fewer than the file says; None if nothing is."""
        if self._read >= _ENOUGH * self.frames - 1:
            return None
        return f'only {self._read} of {self.frames} frames could be read; is the file whole?'
