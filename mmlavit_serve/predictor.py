"""Predictions on images, folders and videos, the same for every runtime."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .errors import UserError, is_file
from .exported import ExportedModel
from .memory import ROUGH_BYTES, available_memory, require_memory
from .resizing import resizing_bytes, shape_after_all
from .results import Result
from .video import Video, is_video

IMAGES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')

_DARK = 16  # what is left of 12 bits where the upper 8 of 16 are kept

Picture = str | os.PathLike | np.ndarray
"""The file of an image, or its pixels: (H, W, 3), uint8, BGR."""


class Predictor:
    """A model that predicts on images.

    Example:
        >>> predictor = Predictor('model.onnx')  # or Predictor('config.py', 'checkpoint.pth')
        >>> result = predictor.predict('image.jpg')
        >>> cv2.imwrite('drawn.png', result.draw(cv2.imread('image.jpg')))

    Args:
        model (str or Path): A model that tools/deployment/export.py wrote (.onnx), or a config.
        checkpoint (str, optional): Weights, for a config.
        runtime (str, optional): 'onnxruntime' (default) or 'openvino' for an exported model, 'torch' for a config.
        device (str): 'cpu', or another that the runtime has, such as 'cuda:0'.
        score_thr (float): Detections below it are left out.
        threads (int, optional): Threads of the CPU; None: as the runtime takes them.
        memory_limit (float, optional): Bytes that an image may need; None: what the machine, or the container, has
            available. An image that needs more is refused.

    Several threads may use one predictor, and one process several: an exported model then computes their images side
    by side; models of configs compute one after the other.

    Raises:
        UserError: If a file, the runtime or the device cannot be used.
    """

    def __init__(
        self,
        model: Any,
        checkpoint: str | None = None,
        *,
        runtime: str | None = None,
        device: str = 'cpu',
        score_thr: float = 0.3,
        threads: int | None = None,
        memory_limit: float | None = None,
    ) -> None:
        self.memory_limit = memory_limit
        if isinstance(model, (str, os.PathLike)) and Path(model).suffix == '.onnx':
            if checkpoint is not None:
                raise UserError(f'{model} has its weights inside; expected no checkpoint beside it')
            path = Path(os.path.expanduser(model))
            self.model = ExportedModel(path, runtime or 'onnxruntime', device, score_thr, threads, memory_limit)
            return
        if runtime not in (None, 'torch'):
            raise UserError(f'runtime {runtime} takes exported models (.onnx); tools/deployment/export.py writes them')
        name = model if isinstance(model, (str, os.PathLike)) else getattr(model, 'filename', None) or 'the config'
        if checkpoint is None:
            raise UserError(f'{name} is not an exported model (.onnx), so it needs a checkpoint beside it')
        try:
            from mmlavit.apis.inference import build_model
        except ModuleNotFoundError as error:
            if error.name != 'mmlavit':
                raise
            raise UserError(f'{name} is a config, for which mmlavit has to be installed; or export it first') from error
        self.model = build_model(model, checkpoint, device, score_thr, threads)

    def predict(self, picture: Picture) -> Result:
        """Predict on one image.

        Args:
            picture (str, Path or np.ndarray): The file of an image, or its pixels: (H, W, 3), uint8, BGR.

        Returns:
            Result: What was found, in pixels of the image.

        Raises:
            UserError: If it is not an image, or needs more memory than there is.
        """
        return self._predict_or_name([picture], [read_image(picture)])[0]

    def predict_each(
        self, pictures: str | os.PathLike | Iterable[Picture], batch_size: int = 1, *, keep_going: bool = False
    ) -> Iterator[tuple[np.ndarray | None, Result | UserError]]:
        """Predict on many images, one after the other in their order.

        Args:
            pictures (str, Path or Iterable): A folder (with its subfolders), an image, a video, or images as for
                :meth:`predict`.
            batch_size (int): Images that are read and, where the model allows it, computed together.
            keep_going (bool): Whether to go on after an image that cannot be used.

        Yields:
            tuple[np.ndarray | None, Result | UserError]: An image, (H, W, 3) uint8 in BGR, and what was found in it.
            With ``keep_going``, in the place of one that cannot be used, None and the error that says why.

        Raises:
            UserError: If there is nothing to read, or, without ``keep_going``, at the first that cannot be used.
        """
        if isinstance(pictures, (str, os.PathLike)):
            path = Path(os.path.expanduser(pictures))
            pictures = Video(path) if is_video(path) else find_images(path)
        if batch_size < 1:
            raise UserError(f'batch_size is {batch_size}, expected 1 or more')
        source, pictures = pictures, iter(pictures)
        while batch := list(islice(pictures, batch_size)):
            if keep_going:
                yield from self._predict_what_can(batch)
            else:
                images = list(map(read_image, batch))
                yield from zip(images, self._predict_or_name(batch, images), strict=True)
        if isinstance(source, Video) and source.problem:
            warnings.warn(f'{source.path}: {source.problem}', stacklevel=2)

    def _predict_what_can(self, batch: Sequence[Picture]) -> Iterator[tuple[np.ndarray | None, Result | UserError]]:
        """Predict on a batch; on each image alone where one of them cannot be used."""
        try:
            images = list(map(read_image, batch))
            results = self._predict(images)
        except UserError as error:
            if len(batch) == 1:
                yield None, error
            else:
                for picture in batch:
                    yield from self._predict_what_can([picture])
        else:
            yield from zip(images, results, strict=True)

    def _predict_or_name(self, batch: Sequence[Picture], images: Sequence[np.ndarray]) -> list[Result]:
        """Predict on a batch; say in a UserError which file it is about."""
        try:
            return self._predict(images)
        except UserError as error:
            if len(batch) > 1:  # one of them alone ends in the same
                for picture, image in zip(batch, images, strict=True):
                    self._predict_or_name([picture], [image])
            if len(batch) > 1 or isinstance(batch[0], np.ndarray):
                raise
            raise UserError(f'{os.fspath(batch[0])}: {error}') from error

    def _predict(self, images: Sequence[np.ndarray]) -> list[Result]:
        shapes = [image.shape[:2] for image in images]
        for shape in shapes:
            self._require_memory(shape, self.model.count_together(shape, shapes))
        try:
            return self.model.predict(images)
        except cv2.error as error:  # such as one of 1x5000, of which resizing would leave nothing
            sizes = ', '.join('{}x{}'.format(*image.shape[:2]) for image in images)
            raise UserError(f'an image of {sizes} cannot be resized as the model wants it ({error.err})') from error

    def _require_memory(self, shape: tuple[int, int], times: int) -> None:
        """Raise a UserError if so many images of this height and width need more memory than there is."""
        seen = shape_after_all(self.model.transforms, shape)
        if min(seen) < 1:
            raise UserError('an image of {}x{} cannot be resized as the model wants it'.format(*shape))
        limit = available_memory() if self.memory_limit is None else self.memory_limit
        # To ask what the model needs may take a second.
        if limit is not None and ROUGH_BYTES * times * (np.prod(shape) + np.prod(seen)) > limit / 2:
            require_memory(self.model.memory.at(seen, shape) * times, shape, self.memory_limit)
        if limit is not None:
            require_memory(resizing_bytes(self.model.transforms, shape), shape, self.memory_limit)


def read_image(picture: Picture) -> np.ndarray:
    """Read an image, or check one that was read.

    Args:
        picture (str, Path or np.ndarray): The file, or the pixels.

    Returns:
        np.ndarray: Image of shape (H, W, 3), uint8, BGR.

    Raises:
        UserError: If it is not an image.
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise UserError(
                f'the image has shape {picture.shape} and type {picture.dtype}; expected (H, W, 3) of uint8, in the '
                'order blue, green, red as cv2.imread gives it'
            )
        return picture
    if not isinstance(picture, (str, os.PathLike)):  # such as the None of cv2.imread
        raise UserError(
            f'an image is of type {type(picture).__name__}; expected the name of a file, or an array (H, W, 3) of '
            'uint8 in the order blue, green, red'
        )
    path = Path(os.path.expanduser(picture))
    if not is_file(path):
        raise UserError(f'{path} does not exist; expected an image')
    try:
        content = path.read_bytes()
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    except (OSError, cv2.error) as error:  # of OpenCV: more than 2^30 pixels
        reason = error.err if isinstance(error, cv2.error) else error.strerror
        raise UserError(f'{path} cannot be read: {reason}') from error
    if image is None:
        raise UserError(f'{path} cannot be read as an image; is the file whole?')
    if image.max() <= _DARK:
        values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        if values.itemsize > 1 and (values[..., :3] if values.ndim == 3 else values).max() > 0:  # without transparency
            raise UserError(
                f'{path} has {8 * values.itemsize} bits in each channel, and nothing but black is left of it in 8: '
                'convert it to 8 bits'
            )
    return image


def find_images(path: Path) -> list[Path]:
    """List the images at a path.

    Args:
        path (Path): An image, or a folder with images in it or in its subfolders, links among them.

    Returns:
        list[Path]: At least one, sorted.

    Raises:
        UserError: If there is none.
    """
    if is_file(path):
        return [path]
    if not path.is_dir():
        raise UserError(f'{path} does not exist; expected an image or a folder of images')
    found = sorted(file for file in _walk(path) if file.suffix.lower() in IMAGES)
    if not found:
        raise UserError(f'{path} has no images; expected files ending in {", ".join(IMAGES)}')
    return found


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder. Links are followed, and each folder is visited once: links can form a circle."""
    visited = set()

    def tell(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise UserError(f'{folder} cannot be read: {error.strerror}') from error
        warnings.warn(f'{error.filename} cannot be read ({error.strerror}): what is in it is left out', stacklevel=4)

    for place, folders, names in os.walk(folder, onerror=tell, followlinks=True):
        real = os.path.realpath(place)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        yield from (Path(place, name) for name in names)
