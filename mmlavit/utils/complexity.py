"""Complexity of the whole model of a config."""

from __future__ import annotations

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from .flops import Complexity, count_complexity

DEFAULT_SHAPES = {'mmpretrain': (224, 224), 'mmdet': (800, 1344), 'mmseg': (512, 512)}
"""Image height and width that each toolbox's models are usually counted at."""


def model_complexity(cfg: Config, shape: tuple[int, int]) -> Complexity:
    """Build the model of a config and count one forward on one blank image.

    A detector's forward is its ``mode='tensor'``: a two-stage detector runs its heads on the proposals that its
    untrained region proposal network gives, as many as its test settings keep.

    Args:
        cfg: Config with ``default_scope`` and ``model``.
        shape: Height and width of the image.

    Returns:
        Parameters and multiply-adds.
    """
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model).eval()
    samples = None
    if cfg.default_scope == 'mmdet':
        from mmdet.structures import DetDataSample

        info = dict(img_shape=shape, ori_shape=shape, batch_input_shape=shape, scale_factor=(1.0, 1.0))
        samples = [DetDataSample(metainfo=info)]
    image = torch.zeros(1, 3, *shape)
    return count_complexity(model, lambda: model(image, samples, mode='tensor'))
