"""Models that are only asked, and the images to ask them about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmlavit.datasets.unlabelled import UnlabelledImages, remove_labels
from mmlavit.errors import UserError
from mmlavit.utils.checkpoint import load_checkpoint, require_checkpoint


def build_teacher(cfg: Mapping[str, Any], scope: str, checkpoint: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build a model with its weights, frozen, in eval mode.

    Args:
        cfg (Mapping): Config of the model.
        scope (str): Its toolbox: 'mmdet', 'mmseg' or 'mmpretrain'.
        checkpoint (str): Its weights.

    Returns:
        tuple[nn.Module, dict[str, Tensor]]: The model, and all tensors of the file.

    Raises:
        UserError: If there is no such file, or it lacks tensors of the model.
    """
    require_checkpoint(checkpoint)
    state = load_checkpoint(checkpoint)
    state = state.get('state_dict', state)
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(cfg)
    names = model.state_dict().keys()
    missing = [name for name in names if name not in state and not name.startswith('data_preprocessor.')]
    if missing:
        raise UserError(
            f'{checkpoint} does not fit the config of the teacher: it has no {missing[0]} '
            f'({len(missing)} of {len(names)} are missing)'
        )
    model.load_state_dict(state, strict=False)
    return model.eval().requires_grad_(False), state


def read_images(cfg: Config, model: nn.Module, folder: str, count: int) -> Iterator[Tensor]:
    """Read images of a folder as the test of a config gives them to its model.

    Args:
        cfg (Config): Config of a classifier, detector or segmentor.
        model (nn.Module): The model.
        folder (str): Images; the folders in it are searched, too.
        count (int): At most so many, evenly spread.

    Yields:
        Tensor: One image after the other, (1, 3, H, W), on the model's device.

    Raises:
        UserError: If there are none.
    """
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = UnlabelledImages(folder, remove_labels(cfg.test_dataloader.dataset.pipeline))
    for i in np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int):
        yield model.data_preprocessor(pseudo_collate([dataset[int(i)]]), False)['inputs']
