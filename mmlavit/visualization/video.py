"""Videos, read and written frame by frame."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from mmlavit.errors import UserError

VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm')


def is_video(path: Path) -> bool:
    """Tell by its name whether a file is a video."""
    return path.is_file() and path.suffix.lower() in VIDEOS


class VideoSource:
    """The frames of a video.

    Args:
        path (Path): The file.

    Raises:
        UserError: If it cannot be read as a video.
    """

    def __init__(self, path: Path) -> None:
        from mmcv import VideoReader

        self._reader = VideoReader(str(path))
        self.fps = self._reader.fps
        self.size = (self._reader.height, self._reader.width)
        if not self.fps or not all(self.size):
            raise UserError(
                f'{path} cannot be read as a video; expected one that OpenCV decodes, such as H.264 in .mp4'
            )

    def __len__(self) -> int:
        """Give the number of frames that the file states."""
        return max(self._reader.frame_cnt, 0)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield frames, (H, W, 3) uint8 in BGR, as many as can be decoded."""
        return iter(self._reader)


class VideoSink:
    """A video file that grows by frames; to be used with ``with``.

    Args:
        path (Path): An .mp4 file; its folder is made.
        fps (float): Frames in a second.
        size (tuple[int, int]): Height and width.

    Raises:
        UserError: If OpenCV cannot write it.
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), fps, size[::-1])
        if not self._writer.isOpened():
            raise UserError(f'{path} cannot be written as a video; is there space, and is OpenCV built with FFmpeg?')

    def write(self, frame: np.ndarray) -> None:
        """Append a frame, (H, W, 3) uint8 in BGR."""
        self._writer.write(np.ascontiguousarray(frame))

    def __enter__(self) -> VideoSink:
        """Give the sink."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the file, also after an error: what was written can be played."""
        self._writer.release()
