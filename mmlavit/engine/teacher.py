"""Models that are only asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

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
