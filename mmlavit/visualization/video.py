"""Videos, read and written frame by frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from mmlavit.errors import UserError

if TYPE_CHECKING:
    from mmcv import VideoReader


def read_video(path: Path) -> VideoReader:
    """Open a video.

    Args:
        path (Path): The file.

    Returns:
        VideoReader: mmcv's, which has ``fps``, ``width`` and ``height`` and yields frames, (H, W, 3) uint8 in BGR.

    Raises:
        UserError: If it cannot be read as a video.
    """
    from mmcv import VideoReader

    video = VideoReader(str(path))
    if not (video.fps and video.width and video.height):
        raise UserError(f'{path} cannot be read as a video; expected one that OpenCV decodes, such as H.264 in .mp4')
    return video


@contextmanager
def write_video(path: Path, fps: float, width: int, height: int) -> Iterator[Callable[[np.ndarray], None]]:
    """Write a video frame by frame. After an error, what was written can be played.

    Args:
        path (Path): An .mp4 file; its folder is made.
        fps (float): Frames in a second.
        width (int): Columns of a frame.
        height (int): Rows of a frame.

    Yields:
        Callable: Appends a frame, (H, W, 3) uint8 in BGR.

    Raises:
        UserError: If OpenCV cannot write it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), fps, (width, height))
    if not writer.isOpened():
        raise UserError(f'{path} cannot be written as a video; is there space, and is OpenCV built with FFmpeg?')
    try:
        yield lambda frame: writer.write(np.ascontiguousarray(frame))
    finally:
        writer.release()
