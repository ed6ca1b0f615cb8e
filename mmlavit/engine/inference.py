"""Predictions on single pictures, drawn by the visualizer of the model's toolbox.

One small class per task with the same three methods; :func:`build_predictor` picks by the config.
"""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement, PixelData
from torch import Tensor

from mmlavit.utils.environment import check_environment

from .checkpoints import require_checkpoint
from .errors import UserError

PICTURES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')

_MAX_NAMED = 8
_MIN_SHARE = 0.001


class Predictor(Protocol):
    """A model that predicts on a picture, says what it found and draws it."""

    def predict(self, image: np.ndarray) -> BaseDataElement:
        """Run the model on ``image``, (H, W, 3) uint8 in BGR; give the toolbox's data sample."""

    def describe(self, sample: BaseDataElement) -> str:
        """Say in a few words what a prediction contains."""

    def draw(self, image: np.ndarray, sample: BaseDataElement, out_file: Path, enlarge: int = 1) -> None:
        """Draw a prediction over its picture, both ``enlarge`` times as large, into a file."""


def build_predictor(cfg: Config, checkpoint: str, device: str, score_thr: float = 0.3) -> Predictor:
    """Load a model for pictures.

    Args:
        cfg (Config): Config of a classifier, detector or segmentor.
        checkpoint (str): Its weights. Class names are taken from there.
        device (str): Such as 'cpu' or 'cuda:0'.
        score_thr (float): Detections below it are left out.

    Returns:
        Predictor: Ready to predict.

    Raises:
        UserError: If the checkpoint, the device or the kind of model is not there.
        EnvironmentProblem: If the toolbox cannot work as installed.
    """
    scope = cfg.get('default_scope')
    if scope not in _PREDICTORS:
        raise UserError(f'the config has default_scope={scope!r}, expected one of {", ".join(_PREDICTORS)}')
    require_checkpoint(checkpoint)
    require_device(device)
    check_environment(scope)
    cls = _PREDICTORS[scope]
    arguments = (copy.deepcopy(cfg), checkpoint, device)
    return cls(*arguments, score_thr) if scope == 'mmdet' else cls(*arguments)


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
        raise UserError(f'--device {device} cannot be used ({reason}); expected cpu or cuda:0') from error


def find_pictures(path: str) -> list[Path]:
    """List the pictures at a path.

    Args:
        path (str): A picture, or a folder with pictures in it or in its subfolders.

    Returns:
        list[Path]: At least one, sorted.

    Raises:
        UserError: If there is none.
    """
    root = Path(path).expanduser()
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise UserError(f'{path} does not exist; expected a picture or a folder of pictures')
    found = sorted(file for file in root.rglob('*') if file.suffix.lower() in PICTURES)
    if not found:
        raise UserError(f'{path} has no pictures; expected files ending in {", ".join(PICTURES)}')
    return found


def read_picture(path: Path) -> np.ndarray:
    """Read a picture.

    Args:
        path (Path): The file.

    Returns:
        np.ndarray: (H, W, 3), uint8, BGR.

    Raises:
        UserError: If it is no picture.
    """
    import mmcv

    image = mmcv.imread(str(path), channel_order='bgr')
    if image is None:
        raise UserError(f'{path} cannot be read as a picture')
    return image


class Detector:
    """Boxes, and masks where the model has them.

    Args:
        cfg (Config): Config with a detector of mmdet.
        checkpoint (str): Its weights.
        device (str): Where to run.
        score_thr (float): Detections below it are neither described nor drawn.
    """

    def __init__(self, cfg: Config, checkpoint: str, device: str, score_thr: float) -> None:
        from mmdet.apis import init_detector
        from mmdet.visualization import DetLocalVisualizer

        self.model = init_detector(cfg, checkpoint, device=device)
        self.classes = self.model.dataset_meta['classes']
        self.score_thr = score_thr
        self.visualizer = DetLocalVisualizer(alpha=0.6)
        self.visualizer.dataset_meta = self.model.dataset_meta

    def predict(self, image: np.ndarray) -> BaseDataElement:
        """Run the model on ``image``, (H, W, 3) uint8 in BGR; give mmdet's data sample."""
        from mmdet.apis import inference_detector

        return inference_detector(self.model, image)

    def describe(self, sample: BaseDataElement) -> str:
        """Count the objects and name the surest."""
        found = sample.pred_instances
        found = found[found.scores > self.score_thr]
        if len(found) == 0:
            return f'nothing above score {self.score_thr:g}'
        order = found.scores.argsort(descending=True).tolist()
        names = [f'{self.classes[found.labels[i]]} {found.scores[i]:.2f}' for i in order[:_MAX_NAMED]]
        rest = ', ...' if len(order) > _MAX_NAMED else ''
        return f'{len(order)} object{"s" if len(order) > 1 else ""}: {", ".join(names)}{rest}'

    def draw(self, image: np.ndarray, sample: BaseDataElement, out_file: Path, enlarge: int = 1) -> None:
        """Draw boxes and masks into ``out_file``."""
        sample = sample.cpu()
        found = sample.pred_instances
        found.bboxes = found.bboxes * enlarge
        if 'masks' in found:
            found.masks = _repeat(found.masks, enlarge)
        self.visualizer.add_datasample(
            out_file.name,
            _enlarge(image, enlarge),
            sample,
            draw_gt=False,
            pred_score_thr=self.score_thr,
            out_file=str(out_file),
        )


class Segmentor:
    """A class for each pixel.

    Args:
        cfg (Config): Config with a segmentor of mmseg.
        checkpoint (str): Its weights.
        device (str): Where to run.
    """

    def __init__(self, cfg: Config, checkpoint: str, device: str) -> None:
        from mmseg.apis import init_model
        from mmseg.visualization import SegLocalVisualizer

        # mmseg looks for it there, and nowhere else.
        cfg.setdefault('test_pipeline', cfg.test_dataloader.dataset.pipeline)
        self.model = init_model(cfg, checkpoint, device=device)
        self.classes = self.model.dataset_meta['classes']
        self.visualizer = SegLocalVisualizer(alpha=0.5)
        self.visualizer.dataset_meta = self.model.dataset_meta

    def predict(self, image: np.ndarray) -> BaseDataElement:
        """Run the model on ``image``, (H, W, 3) uint8 in BGR; give mmseg's data sample."""
        from mmseg.apis import inference_model

        return inference_model(self.model, image)

    def describe(self, sample: BaseDataElement) -> str:
        """Give the share of the picture that each class covers."""
        labels = sample.pred_sem_seg.data.flatten().tolist()
        shares = [
            f'{self.classes[label]} {count / len(labels):.1%}'
            for label, count in Counter(labels).most_common(_MAX_NAMED)
            if count >= _MIN_SHARE * len(labels)
        ]
        return ', '.join(shares)

    def draw(self, image: np.ndarray, sample: BaseDataElement, out_file: Path, enlarge: int = 1) -> None:
        """Colour the picture by class into ``out_file``."""
        sample = sample.cpu()
        sample.pred_sem_seg = PixelData(data=_repeat(sample.pred_sem_seg.data, enlarge))
        self.visualizer.add_datasample(
            out_file.name,
            _enlarge(image, enlarge),
            sample,
            draw_gt=False,
            out_file=str(out_file),
        )


class Classifier:
    """One class for the picture.

    Args:
        cfg (Config): Config with a classifier of mmpretrain.
        checkpoint (str): Its weights.
        device (str): Where to run.
    """

    def __init__(self, cfg: Config, checkpoint: str, device: str) -> None:
        from mmengine.dataset import Compose
        from mmpretrain.apis import get_model
        from mmpretrain.datasets import remove_transform
        from mmpretrain.registry import TRANSFORMS
        from mmpretrain.visualization import UniversalVisualizer

        self.model = get_model(cfg, pretrained=checkpoint, device=device)
        self.classes = self.model._dataset_meta.get('classes')
        self.visualizer = UniversalVisualizer()
        pipeline = remove_transform(cfg.test_dataloader.dataset.pipeline, 'LoadImageFromFile')
        self.pipeline = Compose([TRANSFORMS.build(transform) for transform in pipeline])

    def predict(self, image: np.ndarray) -> BaseDataElement:
        """Run the model on ``image``, (H, W, 3) uint8 in BGR; give mmpretrain's data sample."""
        from mmengine.dataset import default_collate

        size = image.shape[:2]
        data = self.pipeline(dict(img=image, img_shape=size, ori_shape=size))
        with torch.no_grad():
            return self.model.test_step(default_collate([data]))[0]

    def describe(self, sample: BaseDataElement) -> str:
        """Name the three likeliest classes."""
        scores = sample.pred_score
        best = scores.argsort(descending=True)[:3].tolist()
        return ', '.join(f'{self._name(label)} {scores[label]:.2f}' for label in best)

    def draw(self, image: np.ndarray, sample: BaseDataElement, out_file: Path, enlarge: int = 1) -> None:
        """Write the class over the picture into ``out_file``."""
        self.visualizer.visualize_cls(
            _enlarge(image, enlarge),
            sample,
            classes=self.classes,
            draw_gt=False,
            out_file=str(out_file),
        )

    def _name(self, label: int) -> str:
        """Give the name of a class, or its number where the checkpoint has no names."""
        return self.classes[label] if self.classes else str(label)


def _enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    """Enlarge a BGR picture smoothly; give it in RGB, as visualizers take it."""
    import mmcv

    if factor != 1:
        image = mmcv.imrescale(image, factor, interpolation='bicubic')
    return np.ascontiguousarray(image[..., ::-1])


def _repeat(maps: Tensor, factor: int) -> Tensor:
    """Enlarge (n, H, W) masks or labels by repeating pixels."""
    return maps.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


_PREDICTORS = {'mmdet': Detector, 'mmseg': Segmentor, 'mmpretrain': Classifier}
