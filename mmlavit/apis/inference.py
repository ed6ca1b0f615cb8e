"""The torch runtime of :class:`mmlavit_serve.Predictor`: a config and a checkpoint, run by their toolbox.

One small class per task with the same method; :func:`build_model` chooses by the config.
"""

from __future__ import annotations

import copy
import os
import os.path as osp
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.fileio import list_from_file
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import CheckpointLoader
from mmengine.structures import BaseDataElement
from torch import nn

from mmlavit.deployment.pipeline import describe_known_steps, find_test_dataset
from mmlavit.errors import UserError
from mmlavit.models.consistency import require_channels
from mmlavit.utils.allocator import keep_freed_memory
from mmlavit.utils.checkpoint import require_checkpoint
from mmlavit.utils.config_files import load_config
from mmlavit.utils.config_types import find_class, model_config, type_name
from mmlavit.utils.tensor_peak import peak_tensor_bytes
from mmlavit.utils.toolbox import find_scope, load_toolbox
from mmlavit.utils.weights import require_whole
from mmlavit_serve import Classification, Detections, Result, Segmentation
from mmlavit_serve.memory import LABEL_BYTES, MemoryNeed

_SIDES = 256, 512  # of the images that memory is measured with
_RUNNING = threading.Lock()


@contextmanager
def _entered(scope: str) -> Iterator[None]:
    """Be in a toolbox, one thread at a time: the toolboxes keep where they are in places that all threads share."""
    with _RUNNING, DefaultScope.overwrite_default_scope(scope):
        yield


class TorchModel(ABC):
    """A model of a toolbox with everything from an image to a result.

    Args:
        cfg (Config): Config of a model of the class's toolbox.
        checkpoint (str): Its weights.
        device (str): Where to run.
        score_thr (float): Detections below it are left out.
    """

    scope: str
    batched = False  # whether it computes images together

    def __init__(self, cfg: Config, checkpoint: str, device: str, score_thr: float) -> None:
        self.score_thr, self.device = score_thr, device
        if torch.device(device).type == 'cpu':
            keep_freed_memory()  # for any model, as LaViT asks for it
        cfg = copy.deepcopy(cfg)
        cfg.model = model_config(cfg)
        require_channels(cfg.model)
        cfg.test_dataloader.dataset = dataset = find_test_dataset(cfg)  # toolboxes look through no wrappers
        loader = next((step for step in dataset.pipeline if type_name(step) == 'LoadImageFromFile'), {})
        if (kind := loader.get('color_type', 'color')) != 'color':
            raise UserError(
                f'the model reads images with color_type={kind!r}, but is given images in colour, 8 bits and turned by '
                "their EXIF tag here; set it to 'color' in the test pipeline if your images are so"
            )
        if (backend := loader.get('imdecode_backend')) == 'tifffile':
            raise UserError(f'the model reads images with imdecode_backend={backend!r}, but is given 8 bits here')
        self.dtype = np.float32 if loader.get('to_float32') else np.uint8
        with _entered(self.scope):
            weights = CheckpointLoader.load_checkpoint(checkpoint, 'cpu')
            if not isinstance(weights, Mapping) or not isinstance(weights.get('state_dict', {}), Mapping):
                raise UserError(f'{checkpoint} has no weights; expected a checkpoint with a state_dict')
            self.model = self._build(cfg, device)
            require_whole(self.model, weights.get('state_dict', weights), checkpoint)
            self.meta = find_meta(weights, dataset)
            self.transforms = describe_known_steps(dataset.pipeline)  # for the memory that an image needs
        self.classes = self.meta.get('classes')

    @abstractmethod
    def _build(self, cfg: Config, device: str) -> nn.Module:
        """Build the model, with any weights."""

    @abstractmethod
    def _run(self, images: list[np.ndarray]) -> list[BaseDataElement]:
        """Run the model on images (H, W, 3) uint8 in BGR; return the toolbox's data samples."""

    @abstractmethod
    def _to_result(self, shape: tuple[int, int], sample: BaseDataElement) -> Result:
        """Take what was found out of a data sample."""

    @abstractmethod
    def _sample(self, side: int) -> BaseDataElement:
        """Make a data sample for a square image that was not resized."""

    @property
    def _bytes_for_image(self) -> float:
        """What is found takes so many bytes for each pixel of the image."""
        return 0.0

    @cached_property
    def memory(self) -> MemoryNeed:
        """What an image needs; measured at two sizes when it is first asked for.

        On another device, none of it here. Of a model that is made for images of one size, nothing is known.
        """
        if torch.device(self.device).type != 'cpu':
            return MemoryNeed(0, 0, self._bytes_for_image)
        try:
            peaks = [peak_tensor_bytes(lambda side=side: self._run_square(side)) for side in _SIDES]
        except (AssertionError, RuntimeError, ValueError) as error:
            if 'memory' in str(error):
                raise
            # Made for images of one size: nothing is known of others.
            return MemoryNeed(0, 0, self._bytes_for_image)
        pixels = [side * side for side in _SIDES]
        slope = max(0.0, (peaks[1] - peaks[0]) / (pixels[1] - pixels[0]))
        return MemoryNeed(max(0.0, peaks[0] - slope * pixels[0]), slope, self._bytes_for_image)

    def _run_square(self, side: int) -> None:
        """Run the model on noise."""
        image = torch.randint(256, (3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        with _entered(self.scope), torch.no_grad():
            self.model.test_step(dict(inputs=[image], data_samples=[self._sample(side)]))

    def count_together(self, shape: tuple[int, int], shapes: Sequence[tuple[int, int]]) -> int:
        """Count the images that are computed at once with one of this height and width, of all these."""
        return len(shapes) if self.batched else 1

    def predict(self, images: Sequence[np.ndarray]) -> list[Result]:
        """Run the model on images.

        Args:
            images (Sequence[np.ndarray]): Images (H, W, 3), uint8, BGR.

        Returns:
            list[Result]: One for each.
        """
        # What toolboxes give for an image may be much larger than its result: no more of it than needed is kept.
        groups = [list(images)] if self.batched else [[image] for image in images]
        results = []
        for group in groups:
            with _entered(self.scope):
                samples = self._run(group)
            results += [self._to_result(image.shape[:2], one) for image, one in zip(group, samples, strict=True)]
        return results


def find_meta(weights: Mapping[str, Any], dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Find names and colours of classes: those that a checkpoint came with, else those of the config's dataset.

    Args:
        weights (Mapping): The checkpoint.
        dataset (Mapping): Config of a dataset.

    Returns:
        dict[str, Any]: With 'classes' and 'palette', where they are known.
    """
    meta = weights.get('meta') or {}
    found = meta.get('dataset_meta') or {key: meta[key] for key in ('CLASSES', 'PALETTE') if key in meta}
    if any(isinstance(found.get(key), str) for key in ('classes', 'CLASSES')):
        found = {}  # a config may name a file of names, but no checkpoint what is read on this machine
    if not found:
        kind = find_class(dataset, DATASETS)
        found = {**getattr(kind, 'METAINFO', {}), **(dataset.get('metainfo') or {})}
        if isinstance(dataset.get('classes'), (list, tuple, str)):  # as mmpretrain's datasets take them, too
            found['classes'] = dataset['classes']
    found = {key.lower(): value for key, value in found.items()}
    if isinstance(found.get('classes'), str):
        found['classes'] = _read_names(found['classes'])
    elif found.get('classes') is not None:  # an array, perhaps
        found['classes'] = tuple(map(str, found['classes']))
    return found


def _read_names(file: str) -> list[str]:
    """Read the names of classes, which a config may keep in a file with one on each line."""
    try:
        return list_from_file(osp.expanduser(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'the names of classes cannot be read from {file}: {error}') from error


def build_model(
    cfg: Config | str | os.PathLike, checkpoint: str, device: str, score_thr: float, threads: int | None = None
) -> TorchModel:
    """Load a model to predict on images.

    Args:
        cfg (Config or str): Config of a classifier, detector or segmentor, or its file.
        checkpoint (str): Its weights. Class names are taken from there, or from the config if they are not there.
        device (str): Such as 'cpu' or 'cuda:0'.
        score_thr (float): Detections below it are left out.
        threads (int, optional): Threads that torch uses on the CPU, for the whole process; None: as many as it uses.

    Returns:
        TorchModel: Ready to predict.

    Raises:
        UserError: If the checkpoint, the device or the kind of model is not there.
        EnvironmentProblem: If the toolbox cannot work as installed.
    """
    if not isinstance(cfg, Config):
        cfg = load_config(os.fspath(cfg))
    scope = find_scope(cfg)
    require_checkpoint(str(checkpoint))
    require_device(device)
    load_toolbox(scope)
    if threads:
        torch.set_num_threads(threads)
    return _MODELS[scope](cfg, str(checkpoint), device, score_thr)


def require_device(device: str) -> None:
    """Make sure that a device exists.

    Args:
        device (str): Such as 'cpu' or 'cuda:0'.

    Raises:
        UserError: If it does not.
    """
    try:
        torch.empty(1, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f'device {device} cannot be used ({reason}); expected cpu or cuda:0') from error


class _Detector(TorchModel):
    scope = 'mmdet'

    def _build(self, cfg: Config, device: str) -> nn.Module:
        from mmdet.apis import init_detector

        if 'backbone' not in cfg.model:
            raise UserError(
                f'{type_name(cfg.model)} has no backbone of its own: name the config of the detector in it, and a '
                'checkpoint with its weights alone'
            )
        with warnings.catch_warnings(record=True) as said:
            model = init_detector(cfg, palette='random', device=device)
        for warning in said:
            if 'use COCO classes by default' not in str(warning.message):  # find_meta finds the right ones
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        return model

    def _run(self, images: list[np.ndarray]) -> list[BaseDataElement]:
        from mmdet.apis import inference_detector

        return inference_detector(self.model, images)

    def _to_result(self, shape: tuple[int, int], sample: BaseDataElement) -> Result:
        if 'pred_instances' not in sample:
            raise UserError(f'{type(self.model).__name__} finds no boxes (panoptic segmentation?); expected a detector')
        found = sample.pred_instances
        order = found.scores.argsort(descending=True, stable=True)
        found = found[order[found.scores[order] > self.score_thr]].cpu().numpy()
        masks = found.masks if 'masks' in found else None
        return Detections(shape, self.classes, found.bboxes, found.scores, found.labels, masks)

    def _sample(self, side: int) -> BaseDataElement:
        from mmdet.structures import DetDataSample

        return DetDataSample(metainfo=_square(side))

    @property
    def _bytes_for_image(self) -> float:
        # mmdet puts all masks into the image, as bytes; those that are kept are copied.
        cfg = self.model.test_cfg
        return 2.0 * (cfg.get('rcnn') or cfg).get('max_per_img', 100) if self.model.with_mask else 0.0


class _Segmentor(TorchModel):
    scope = 'mmseg'

    def _build(self, cfg: Config, device: str) -> nn.Module:
        from mmseg.apis import init_model

        # mmseg looks for it there, and nowhere else.
        cfg.test_pipeline = _without(cfg.test_dataloader.dataset.pipeline, 'LoadAnnotations')
        return init_model(cfg, device=device)

    def _run(self, images: list[np.ndarray]) -> list[BaseDataElement]:
        from mmseg.apis import inference_model

        # Not in a batch: mmseg pads it to its largest image, which changes what is found in the others.
        return [inference_model(self.model, image) for image in images]

    def _to_result(self, shape: tuple[int, int], sample: BaseDataElement) -> Result:
        return Segmentation(
            shape, self.classes, sample.pred_sem_seg.data[0].cpu().long().numpy(), self.meta.get('palette')
        )

    def _sample(self, side: int) -> BaseDataElement:
        from mmseg.structures import SegDataSample

        return SegDataSample(metainfo=_square(side))

    @property
    def _bytes_for_image(self) -> float:
        return 4.0 * self.model.out_channels + LABEL_BYTES  # scores in fp32, then labels


class _Classifier(TorchModel):
    scope = 'mmpretrain'
    batched = True

    def _build(self, cfg: Config, device: str) -> nn.Module:
        from mmengine.dataset import Compose
        from mmpretrain.apis import get_model
        from mmpretrain.registry import TRANSFORMS

        pipeline = _without(cfg.test_dataloader.dataset.pipeline, 'LoadImageFromFile')
        self.pipeline = Compose([TRANSFORMS.build(transform) for transform in pipeline])
        cfg.pop('test_dataloader')  # get_model looks up the dataset by name, and a config may have its class
        return get_model(cfg, device=device)

    def _run(self, images: list[np.ndarray]) -> list[BaseDataElement]:
        from mmengine.dataset import pseudo_collate

        sizes = [image.shape[:2] for image in images]
        data = [
            self.pipeline(dict(img=image.astype(self.dtype, copy=False), img_shape=size, ori_shape=size))
            for image, size in zip(images, sizes, strict=True)
        ]
        with torch.no_grad():
            # One by one where the pipeline leaves them at different sizes.
            if len({tuple(entry['inputs'].shape) for entry in data}) == 1:
                return self.model.test_step(pseudo_collate(data))
            return [self.model.test_step(pseudo_collate([entry]))[0] for entry in data]

    def _to_result(self, shape: tuple[int, int], sample: BaseDataElement) -> Result:
        return Classification(shape, self.classes, sample.pred_score.cpu().numpy())

    def _sample(self, side: int) -> BaseDataElement:
        from mmpretrain.structures import DataSample

        return DataSample(metainfo=_square(side))


def _without(pipeline: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """Leave out steps of a pipeline, whichever way they are named; the toolboxes know one."""
    return [step for step in pipeline if type_name(step) != name]


def _square(side: int) -> dict[str, Any]:
    """Describe an image that was not resized, as toolboxes do."""
    return dict(ori_shape=(side, side), img_shape=(side, side), scale_factor=(1.0, 1.0))


_MODELS = {cls.scope: cls for cls in (_Detector, _Segmentor, _Classifier)}
