"""Predictions on single images.

One small class per task with the same methods; :func:`build_predictor` chooses by the config.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement
from torch import nn

from mmlavit.errors import UserError
from mmlavit.utils.checkpoint import require_checkpoint
from mmlavit.utils.masks import run_lengths
from mmlavit.utils.toolbox import load_toolbox
from mmlavit.visualization.drawing import build_visualizer, draw_sample

PICTURES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')

_MAX_NAMED = 8
_MAX_RECORDED = 5
_MIN_SHARE = 0.001


class Predictor(ABC):
    """A model that predicts on an image, says what it found, records it and draws it.

    Args:
        cfg (Config): Config of a model of the class's toolbox.
        checkpoint (str): Its weights.
        device (str): Where to run.
        score_thr (float): Detections below it are neither described nor recorded nor drawn.
    """

    scope: str

    def __init__(self, cfg: Config, checkpoint: str, device: str, score_thr: float) -> None:
        self.score_thr = score_thr
        self.model, meta = self._load(copy.deepcopy(cfg), checkpoint, device)
        self.classes = meta.get('classes')
        self.visualizer = build_visualizer(self.scope, meta)

    @abstractmethod
    def _load(self, cfg: Config, checkpoint: str, device: str) -> tuple[nn.Module, Mapping[str, Any]]:
        """Build the model with its weights; return it and the ``metainfo`` of its data set."""

    @abstractmethod
    def predict(self, image: np.ndarray) -> BaseDataElement:
        """Run the model on ``image``, (H, W, 3) uint8 in BGR; return the toolbox's data sample."""

    @abstractmethod
    def describe(self, sample: BaseDataElement) -> str:
        """Describe a prediction in a few words."""

    @abstractmethod
    def record(self, sample: BaseDataElement) -> dict[str, Any]:
        """Return what a prediction contains as values for JSON."""

    def render(self, image: np.ndarray, sample: BaseDataElement, enlarge: int = 1) -> np.ndarray:
        """Draw a prediction over its image, both ``enlarge`` times as large; give it in BGR."""
        return draw_sample(self.visualizer, image, sample, enlarge=enlarge, score_thr=self.score_thr)

    def draw(self, image: np.ndarray, sample: BaseDataElement, out_file: Path, enlarge: int = 1) -> None:
        """Draw a prediction over its image into a file, whose folder is made."""
        write_picture(out_file, self.render(image, sample, enlarge))


def build_predictor(cfg: Config, checkpoint: str, device: str, score_thr: float = 0.3) -> Predictor:
    """Load a model to predict on images.

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
    load_toolbox(scope)
    return _PREDICTORS[scope](cfg, checkpoint, device, score_thr)


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
    """List the images at a path.

    Args:
        path (str): An image, or a folder with images in it or in its subfolders.

    Returns:
        list[Path]: At least one, sorted.

    Raises:
        UserError: If there is none.
    """
    root = Path(path).expanduser()
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise UserError(f'{path} does not exist; expected an image or a folder of images')
    found = sorted(file for file in root.rglob('*') if file.suffix.lower() in PICTURES)
    if not found:
        raise UserError(f'{path} has no images; expected files ending in {", ".join(PICTURES)}')
    return found


def read_picture(path: str | Path) -> np.ndarray:
    """Read an image.

    Args:
        path (str or Path): The file.

    Returns:
        np.ndarray: (H, W, 3), uint8, BGR.

    Raises:
        UserError: If it is not an image.
    """
    import mmcv

    image = mmcv.imread(str(path), channel_order='bgr')
    if image is None:
        raise UserError(f'{path} cannot be read as an image')
    return image


def write_picture(path: Path, image: np.ndarray) -> None:
    """Write an image; its folder is made.

    Args:
        path (Path): The file; its ending decides the format.
        image (np.ndarray): (H, W, 3), uint8, BGR.

    Raises:
        UserError: If it cannot be written.
    """
    import mmcv

    try:
        written = mmcv.imwrite(np.ascontiguousarray(image), str(path))
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error}') from error
    if not written:
        raise UserError(f'{path} cannot be written as an image')


class Detector(Predictor):
    """Boxes, and masks where the model has them."""

    scope = 'mmdet'

    def _load(self, cfg: Config, checkpoint: str, device: str) -> tuple[nn.Module, Mapping[str, Any]]:
        from mmdet.apis import init_detector

        model = init_detector(cfg, checkpoint, device=device)
        return model, model.dataset_meta

    def predict(self, image: np.ndarray) -> BaseDataElement:
        """Run the model on ``image``, (H, W, 3) uint8 in BGR; give mmdet's data sample."""
        from mmdet.apis import inference_detector

        return inference_detector(self.model, image)

    def describe(self, sample: BaseDataElement) -> str:
        """Count the objects and name those with the highest scores."""
        found = sample.pred_instances
        found = found[found.scores > self.score_thr]
        if len(found) == 0:
            return f'nothing above score {self.score_thr:g}'
        order = found.scores.argsort(descending=True).tolist()
        names = [f'{self.classes[found.labels[i]]} {found.scores[i]:.2f}' for i in order[:_MAX_NAMED]]
        rest = ', ...' if len(order) > _MAX_NAMED else ''
        return f'{len(order)} object{"s" if len(order) > 1 else ""}: {", ".join(names)}{rest}'

    def record(self, sample: BaseDataElement) -> dict[str, Any]:
        """List the objects, highest score first: class, score, box (x1, y1, x2, y2) and mask."""
        found = sample.pred_instances.cpu()
        found = found[found.scores > self.score_thr]
        objects = []
        for i in found.scores.argsort(descending=True).tolist():
            label = int(found.labels[i])
            box = [round(value, 2) for value in found.bboxes[i].tolist()]
            score = round(float(found.scores[i]), 4)
            entry = {'class': self.classes[label], 'label': label, 'score': score, 'box': box}
            if 'masks' in found:
                entry['mask'] = run_lengths(found.masks[i].numpy())
            objects.append(entry)
        return dict(objects=objects)


class Segmentor(Predictor):
    """A class for each pixel."""

    scope = 'mmseg'

    def _load(self, cfg: Config, checkpoint: str, device: str) -> tuple[nn.Module, Mapping[str, Any]]:
        from mmseg.apis import init_model

        # mmseg looks for it there, and nowhere else.
        cfg.setdefault('test_pipeline', cfg.test_dataloader.dataset.pipeline)
        model = init_model(cfg, checkpoint, device=device)
        return model, model.dataset_meta

    def predict(self, image: np.ndarray) -> BaseDataElement:
        """Run the model on ``image``, (H, W, 3) uint8 in BGR; give mmseg's data sample."""
        from mmseg.apis import inference_model

        return inference_model(self.model, image)

    def describe(self, sample: BaseDataElement) -> str:
        """Give the share of the image that each class covers."""
        labels = sample.pred_sem_seg.data.flatten().tolist()
        shares = [
            f'{self.classes[label]} {count / len(labels):.1%}'
            for label, count in Counter(labels).most_common(_MAX_NAMED)
            if count >= _MIN_SHARE * len(labels)
        ]
        return ', '.join(shares)

    def record(self, sample: BaseDataElement) -> dict[str, Any]:
        """List the classes in the image, the largest first: share of the pixels and mask."""
        labels = sample.pred_sem_seg.data[0].cpu().numpy()
        classes = []
        for label, count in Counter(labels.ravel().tolist()).most_common():
            share = round(count / labels.size, 4)
            mask = run_lengths(labels == label)
            classes.append({'class': self.classes[label], 'label': label, 'share': share, 'mask': mask})
        return dict(classes=classes)


class Classifier(Predictor):
    """One class for the image."""

    scope = 'mmpretrain'

    def _load(self, cfg: Config, checkpoint: str, device: str) -> tuple[nn.Module, Mapping[str, Any]]:
        from mmengine.dataset import Compose
        from mmpretrain.apis import get_model
        from mmpretrain.datasets import remove_transform
        from mmpretrain.registry import TRANSFORMS

        pipeline = remove_transform(cfg.test_dataloader.dataset.pipeline, 'LoadImageFromFile')
        self.pipeline = Compose([TRANSFORMS.build(transform) for transform in pipeline])
        model = get_model(cfg, pretrained=checkpoint, device=device)
        return model, dict(classes=model._dataset_meta.get('classes'))

    def predict(self, image: np.ndarray) -> BaseDataElement:
        """Run the model on ``image``, (H, W, 3) uint8 in BGR; give mmpretrain's data sample."""
        from mmengine.dataset import default_collate

        size = image.shape[:2]
        data = self.pipeline(dict(img=image, img_shape=size, ori_shape=size))
        with torch.no_grad():
            return self.model.test_step(default_collate([data]))[0]

    def describe(self, sample: BaseDataElement) -> str:
        """Name the three most likely classes."""
        scores = sample.pred_score
        best = scores.argsort(descending=True)[:3].tolist()
        return ', '.join(f'{self._name(label)} {scores[label]:.2f}' for label in best)

    def record(self, sample: BaseDataElement) -> dict[str, Any]:
        """List the most likely classes, at most five, with their scores."""
        scores = sample.pred_score.cpu()
        best = scores.argsort(descending=True)[:_MAX_RECORDED].tolist()
        classes = [{'class': self._name(i), 'label': i, 'score': round(float(scores[i]), 4)} for i in best]
        return dict(classes=classes)

    def _name(self, label: int) -> str:
        """Give the name of a class, or its number where the checkpoint has no names."""
        return self.classes[label] if self.classes else str(label)


_PREDICTORS = {cls.scope: cls for cls in (Detector, Segmentor, Classifier)}
