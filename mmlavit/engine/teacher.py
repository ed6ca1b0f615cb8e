"""Models that are only asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmlavit.utils.checkpoint import load_checkpoint
from mmlavit.utils.config_types import without_initialisation
from mmlavit.utils.weights import require_whole


def build_teacher(cfg: Mapping[str, Any], scope: str, checkpoint: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build a model with its weights, frozen, in eval mode.

    Args:
        cfg (Mapping): Config of the model.
        scope (str): Its toolbox: 'mmdet', 'mmseg' or 'mmpretrain'.
        checkpoint (str): Its weights.

    Returns:
        tuple[nn.Module, dict[str, Tensor]]: The model, and all tensors of the file.

    Raises:
        UserError: If there is no such file, or its tensors are not those of the model.
    """
    state = load_checkpoint(checkpoint)['state_dict']
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(without_initialisation(cfg))
    require_whole(model, state, checkpoint)
    return model.eval().requires_grad_(False), state
