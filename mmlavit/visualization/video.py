"""Videos, written frame by frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from mmlavit.errors import UserError


@contextmanager
def write_video(path: Path, fps: float, width: int, height: int) -> Iterator[Callable[[np.ndarray], None]]:
    """Write a video frame by frame. After an error, what was written can be played.

    Args:
        path (Path): An .mp4 file; its folder is made.
        fps (float): Frames in a second; rounded where the format needs it.
        width (int): Columns of a frame; the last of an odd number is left out.
        height (int): Rows of a frame; likewise.

    Yields:
        Callable: Appends a frame, (H, W, 3) uint8 in BGR; one of another size is resized.

    Raises:
        UserError: If OpenCV cannot write it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for rate in (fps, round(fps, 1), float(round(fps))):  # the format has no fractions as of 239.763
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), rate, (width, height))
        if writer.isOpened():
            break
    else:
        raise UserError(f'{path} cannot be written as a video; is there space, and is OpenCV built with FFmpeg?')

    def write(frame: np.ndarray) -> None:
        if frame.shape[:2] != (height, width):  # which OpenCV would leave out without a word
            frame = cv2.resize(frame, (width, height))
        writer.write(np.ascontiguousarray(frame))

    try:
        yield write
    finally:
        writer.release()
