"""Whole models: an image of bytes in, what the toolbox's test would give out."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlavit.errors import ConfigError
from mmlavit.models.resample import ceil_div

from .layers import replace_layers, resize


class Normalisation(nn.Module):
    """What a data preprocessor does to an image before a test: channel order, mean and deviation, padding.

    Args:
        preprocessor (nn.Module): That of a model of mmpretrain, mmdet or mmseg.
        divisor (int): Of what sides are padded to.
    """

    def __init__(self, preprocessor: nn.Module, divisor: int) -> None:
        super().__init__()
        attributes = ('_channel_conversion', 'channel_conversion', 'to_rgb')  # by toolbox
        self.swap = any(getattr(preprocessor, name, False) for name in attributes)
        if getattr(preprocessor, '_enable_normalize', True):
            self.register_buffer('mean', preprocessor.mean.view(-1, 1, 1).clone())
            self.register_buffer('std', preprocessor.std.view(-1, 1, 1).clone())
        else:
            self.mean = self.std = None
        self.divisor = divisor
        # The first is mmseg's name, the second that of all others.
        value = preprocessor.pad_val if hasattr(preprocessor, 'pad_val') else preprocessor.pad_value
        if self.divisor > 1 and value:
            raise ConfigError(f'data_preprocessor pads with {value}, expected 0 for an export')

    def forward(self, images: Tensor) -> Tensor:
        """Turn images (B, H, W, 3) of bytes, BGR as OpenCV reads them, into the backbone's (B, 3, H', W')."""
        x = images.permute(0, 3, 1, 2)
        if self.swap:
            x = x[:, [2, 1, 0]]
        x = x.float()
        if self.mean is not None:
            x = (x - self.mean) / self.std
        if self.divisor == 1:
            return x
        below, right = (ceil_div(side, self.divisor) * self.divisor - side for side in images.shape[1:3])
        return F.pad(x, (0, right, 0, below))


class Classifier(nn.Module):
    """Images to the probabilities of classes.

    Args:
        model (nn.Module): ImageClassifier of mmpretrain.
    """

    inputs, outputs = ('images',), ('scores',)

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        from mmpretrain.models.heads import ClsHead

        kind = type(model.head)
        plain = isinstance(model.head, ClsHead) and all(
            getattr(kind, name) is getattr(ClsHead, name) for name in ('predict', '_get_predictions')
        )
        if not plain:
            raise ConfigError(
                f'{kind.__name__} cannot be exported: probabilities are by softmax over classes, as of '
                'LinearClsHead; heads for several labels or for regression need another model file'
            )
        self.normalise = Normalisation(model.data_preprocessor, model.data_preprocessor.pad_size_divisor or 1)
        self.backbone, self.neck, self.head = model.backbone, model.neck, model.head

    def forward(self, images: Tensor) -> Tensor:
        """Classify images (B, H, W, 3): probabilities (B, classes)."""
        features = self.backbone(self.normalise(images))
        return self.head(features if self.neck is None else self.neck(features)).softmax(dim=-1)


class Detector(nn.Module):
    """One image to boxes, and masks where the model has them.

    Args:
        model (nn.Module): One- or two-stage detector of mmdet.
    """

    inputs = ('images',)

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        from .detectors import OneStage, TwoStages  # mmdet, which the other tasks do without

        parts = [part for part in ('semantic_head', 'panoptic_fusion_head') if getattr(model, f'with_{part}', False)]
        if parts:
            raise ConfigError(
                f'{type(model).__name__} cannot be exported: what its {" and ".join(parts)} give would be left out'
            )
        self.normalise = Normalisation(model.data_preprocessor, model.data_preprocessor.pad_size_divisor or 1)
        self.backbone, self.neck = model.backbone, model.neck if model.with_neck else None
        self.head = TwoStages(model) if hasattr(model, 'roi_head') else OneStage(model)
        self.outputs = self.head.outputs

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Detect on an image (1, H, W, 3).

        Args:
            images (Tensor): The image.

        Returns:
            tuple[Tensor]: Boxes (x1, y1, x2, y2) of shape (N, 4) in pixels, scores (N,) and labels (N,), highest
            score first; for models with masks also their probabilities inside of the boxes, (N, s, s).
        """
        features = self.backbone(self.normalise(images))
        features = features if self.neck is None else self.neck(features)
        height, width = images.shape[1:3]
        limit = torch.stack([torch.scalar_tensor(side, device=images.device) for side in (width, height) * 2])
        return self.head(features, limit)


class Segmentor(nn.Module):
    """Images to the class of every pixel.

    Args:
        model (nn.Module): EncoderDecoder of mmseg.
    """

    inputs, outputs = ('images', 'size'), ('labels',)

    def __init__(self, model: nn.Module) -> None:
        from mmseg.models.decode_heads.decode_head import BaseDecodeHead

        super().__init__()
        # Of a SegDataPreProcessor, size_divisor is for training, and pad_size_divisor is the same.
        padding = getattr(model.data_preprocessor, 'test_cfg', None) or {}
        if padding.get('size') is not None:
            raise ConfigError(
                f'data_preprocessor.test_cfg={dict(padding)} cannot be exported; expected size_divisor, or no padding'
            )
        self.normalise = Normalisation(model.data_preprocessor, padding.get('size_divisor') or 1)
        self.backbone, self.neck = model.backbone, model.neck if model.with_neck else None
        self.head = model.decode_head
        if isinstance(self.head, nn.ModuleList):
            raise ConfigError(f'{type(model).__name__} cannot be exported; expected an EncoderDecoder, with one head')
        for name in ('predict', 'predict_by_feat'):
            own = getattr(type(self.head), name) is not getattr(BaseDecodeHead, name)
            if own and getattr(self.head, 'use_se_loss', True):  # EncHead without that loss predicts as others do
                raise ConfigError(f'{type(self.head).__name__} predicts in its own way, which cannot be exported')
        if model.test_cfg.get('mode') != 'whole' or self.head.out_channels < 2:
            raise ConfigError(
                f'test_cfg={dict(model.test_cfg)} with {self.head.out_channels} output channels cannot be exported; '
                "expected mode='whole' and at least 2 channels"
            )
        replace_layers(self.head)

    def forward(self, images: Tensor, size: Tensor) -> Tensor:
        """Segment images.

        Args:
            images (Tensor): Images (B, H, W, 3).
            size (Tensor): Height and width of the result, such as those that the image had before it was resized, (2,).

        Returns:
            Tensor: Labels (B, height, width).
        """
        x = self.normalise(images)
        features = self.backbone(x)
        features = features if self.neck is None else self.neck(features)
        logits = resize(self.head(features), x.shape[2:], self.head.align_corners)
        if self.normalise.divisor > 1:
            logits = logits[:, :, : images.shape[1], : images.shape[2]]
        # Between corners that are one there is nothing to align.
        smallest = 2 if self.head.align_corners else 1
        return resize(logits, _lengths(size, smallest), self.head.align_corners).argmax(dim=1)


def _lengths(size: Tensor, smallest: int) -> Sequence[int]:
    """Read two lengths from a tensor, in an export as symbols."""
    lengths = size.tolist()
    for length in lengths:
        torch._check(length >= smallest)
    return lengths


def build_graph(model: nn.Module, scope: str) -> nn.Module:
    """Turn a model into one whose ``forward`` is the whole test.

    Args:
        model (nn.Module): Model of a toolbox; it is copied.
        scope (str): 'mmpretrain', 'mmdet' or 'mmseg'.

    Returns:
        nn.Module: In evaluation mode, with the names of its ``inputs`` and ``outputs``.

    Raises:
        ConfigError: If a part of the model has no form for an export.
    """
    graph = {'mmpretrain': Classifier, 'mmdet': Detector, 'mmseg': Segmentor}[scope]
    return graph(copy.deepcopy(model)).eval()
