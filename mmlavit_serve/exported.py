"""An exported model: images prepared as the test pipeline does it, and results in pixels of the original images."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np

from .errors import UserError
from .memory import MemoryNeed, require_memory
from .resizing import apply, shape_after_all
from .results import Classification, Detections, Result, Segmentation, paste_masks
from .runtimes import RUNTIMES


class ExportedModel:
    """A model file with everything from an image to a result.

    Args:
        path (Path): The file.
        runtime (str): 'onnxruntime' or 'openvino'.
        device (str): 'cpu', or another that the runtime has.
        score_thr (float): Detections below it are left out.
        threads (int, optional): Threads of the CPU; None: as the runtime takes them.
        memory_limit (float, optional): Bytes that an image may need; None: what is available.
    """

    def __init__(
        self,
        path: Path,
        runtime: str,
        device: str,
        score_thr: float,
        threads: int | None,
        memory_limit: float | None = None,
    ) -> None:
        if runtime not in RUNTIMES:
            raise UserError(f'runtime is {runtime!r}, expected one of {", ".join(RUNTIMES)} for {path}')
        self.session = RUNTIMES[runtime](path, threads, device)
        meta = self.session.metadata
        self.task, self.transforms = meta['task'], meta['transforms']
        self.classes, self.palette = meta['classes'], meta['palette']
        self.mask_thr, self.sides = meta['mask_thr'], meta['sides']
        # Older files do not say.
        self.memory = MemoryNeed(*meta.get('memory', (0, 0, 0)))
        self.score_thr, self.memory_limit = score_thr, memory_limit
        batch, height, width, _ = self.session.input_shapes['images']
        self.batched = batch != 1
        self.fixed = (height, width) if isinstance(height, int) and isinstance(width, int) else None

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Resize and crop an image (H, W, 3) as in the test that the model was exported from."""
        for transform in self.transforms:
            image = apply(transform, image)
        if self.fixed and image.shape[:2] != self.fixed:
            raise UserError(
                f'{self.session.path} takes images of {self.fixed[0]}x{self.fixed[1]} only, but this one is '
                f'{image.shape[0]}x{image.shape[1]} after the resizing of its test pipeline; '
                'export the model without --shape'
            )
        if self.sides and not self.sides[0] <= min(image.shape[:2]) <= max(image.shape[:2]) <= self.sides[1]:
            raise UserError(
                f'the image is {image.shape[0]}x{image.shape[1]} after the resizing of the test pipeline; '
                f'{self.session.path} takes sides of {self.sides[0]} to {self.sides[1]} pixels'
            )
        return np.ascontiguousarray(image)

    def predict(self, images: Sequence[np.ndarray]) -> list[Result]:
        """Run the model on images.

        Args:
            images (Sequence[np.ndarray]): Images (H, W, 3), uint8, BGR, of any sizes. Those that have one size after
                resizing are computed together where the model allows it.

        Returns:
            list[Result]: One for each.
        """
        prepared = [self.prepare(image) for image in images]
        together = {}
        for index, (image, ready) in enumerate(zip(images, prepared, strict=True)):
            key = self._group(ready.shape[:2], image.shape[:2]) if self.batched else index
            together.setdefault(key, []).append(index)
        results = {}
        for indices in together.values():
            inputs = dict(images=np.stack([prepared[index] for index in indices]))
            if self.task == 'segmentation':
                inputs['size'] = np.array(images[indices[0]].shape[:2], np.int64)
            outputs = self.session.run(inputs)
            for place, index in enumerate(indices):
                results[index] = self._result(outputs, place, images[index], prepared[index])
        return [results[index] for index in range(len(images))]

    def _group(self, prepared: tuple[int, int], shape: tuple[int, int]) -> Hashable:
        """Name what images with this height and width after and before resizing are computed with."""
        return (prepared, shape) if self.task == 'segmentation' else prepared  # a segmentor resizes maps to one size

    def count_together(self, shape: tuple[int, int], shapes: Sequence[tuple[int, int]]) -> int:
        """Count the images that are computed at once with one.

        Args:
            shape (tuple[int, int]): Height and width of the one.
            shapes (Sequence[tuple[int, int]]): Those of all images that are there, itself among them.

        Returns:
            int: One or more.
        """
        if not self.batched:
            return 1
        groups = [self._group(shape_after_all(self.transforms, each), each) for each in (shape, *shapes)]
        return groups[1:].count(groups[0])

    def _result(self, outputs: dict[str, np.ndarray], place: int, image: np.ndarray, prepared: np.ndarray) -> Result:
        shape = image.shape[:2]
        if self.task == 'classification':
            return Classification(shape, self.classes, outputs['scores'][place])
        if self.task == 'segmentation':
            return Segmentation(shape, self.classes, outputs['labels'][place], self.palette)
        kept = outputs['scores'] > self.score_thr
        scale = np.array([prepared.shape[1] / shape[1], prepared.shape[0] / shape[0]] * 2, np.float32)
        boxes = outputs['boxes'][kept] / scale
        masks = outputs['masks'][kept] if 'masks' in outputs else None
        if masks is not None:
            require_memory(boxes.shape[0] * shape[0] * shape[1], shape, self.memory_limit)
            masks = paste_masks(masks, boxes, shape, self.mask_thr)
        return Detections(shape, self.classes, boxes, outputs['scores'][kept], outputs['labels'][kept], masks)
