"""What is a mechanism worth to a trained model? Take it away, without training, and test again (ours)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import Tensor, nn

from mmlavit.errors import ConfigError
from mmlavit.models.lavit import AttentionResidual, LaViT, LessAttention, VanillaAttention
from mmlavit.models.layout import Scores

Attention = VanillaAttention | LessAttention


@HOOKS.register_module()
class AblationHook(Hook):
    """Take something away from a LaViT, or from its twin, before a test.

    Args:
        what (str): A key of :data:`ABLATIONS`.
        num_va_layers (Sequence[int]): Layers at the start of each stage that are left alone. The others, the later
            layers, are changed; in a twin these are vanilla layers.

    Raises:
        ConfigError: If there is no such ablation, the backbone is no LaViT, or has nothing of the kind.
    """

    priority = 'LOWEST'  # after EMAHook, which puts the averaged weights into place

    def __init__(self, what: str, num_va_layers: Sequence[int]) -> None:
        _require_known(what)
        self.what = what
        self.num_va_layers = tuple(num_va_layers)

    def before_test_epoch(self, runner) -> None:
        """Change the model."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        ablate(model.backbone, self.what, self.num_va_layers)


def ablate(backbone: nn.Module, what: str, num_va_layers: Sequence[int]) -> None:
    """Take something away from a backbone; the arguments are those of :class:`AblationHook`.

    Raises:
        ConfigError: If there is no such ablation, the backbone is no LaViT, or has nothing of the kind.
    """
    _require_known(what)
    if not isinstance(backbone, LaViT):
        raise ConfigError(f'expected a LaViT as backbone, got {type(backbone).__name__}')
    if not ABLATIONS[what](backbone, num_va_layers):
        raise ConfigError(f'this backbone has no {TITLES[what]}')


def _require_known(what: str) -> None:
    if what not in ABLATIONS:
        raise ConfigError(f'what must be one of {", ".join(ABLATIONS)}, got {what!r}')


def _remove_residual(backbone: LaViT, num_va_layers: Sequence[int]) -> int:
    return _set_to_zero([m.layer_scale for m in backbone.modules() if isinstance(m, AttentionResidual)])


def _remove_transforms(backbone: LaViT, num_va_layers: Sequence[int]) -> int:
    layers = [m for m in backbone.modules() if isinstance(m, LessAttention)]
    return _set_to_zero([delta for layer in layers for delta in (layer.delta_theta, layer.delta_psi)])


def _set_to_zero(parameters: Sequence[nn.Parameter]) -> int:
    for parameter in parameters:
        parameter.data.zero_()
    return len(parameters)


def _later(backbone: LaViT, num_va_layers: Sequence[int]) -> list[Attention]:
    # Stages after the last of out_indices are not built.
    return [block.attn for n, stage in enumerate(backbone.stages) for block in stage.blocks[num_va_layers[n] :]]


def _make_uniform(backbone: LaViT, num_va_layers: Sequence[int]) -> int:
    return _replace(_later(backbone, num_va_layers), attend_uniformly)


def _remove_attention(backbone: LaViT, num_va_layers: Sequence[int]) -> int:
    return _replace(_later(backbone, num_va_layers), lambda attn, x, grid: torch.zeros_like(x))


def attend_uniformly(attn: Attention, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Give every query the mean of all M reduced values.

    Args:
        attn (VanillaAttention or LessAttention): The layer whose values and projection are used.
        x (Tensor): Normalised tokens of shape (B, N, C).
        grid (tuple[int, int]): Their grid.

    Returns:
        Tensor: Tokens of shape (B, N, C).
    """
    mean = attn.reduction(x, grid).mean(dim=1, keepdim=True)  # (B, 1, C)
    value = attn.v(mean) if isinstance(attn, LessAttention) else attn.kv(mean).chunk(2, dim=-1)[1]
    return attn.proj(value).expand_as(x)


def _replace(layers: Sequence[Attention], attend: Callable[[Attention, Tensor, tuple[int, int]], Tensor]) -> int:
    """Let layers attend otherwise; the scores that they pass on stay what they are."""

    def hook(attn: Attention, args: tuple, output: tuple) -> tuple:
        x, place = args[:2]  # a grid, or scores that know it
        return attend(attn, x, place.grid if isinstance(place, Scores) else place), output[1]

    for attn in layers:
        attn.register_forward_hook(hook)
    return len(layers)


ABLATIONS: dict[str, Callable[[LaViT, Sequence[int]], int]] = {
    'residual': _remove_residual,
    'transforms': _remove_transforms,
    'uniform': _make_uniform,
    'none': _remove_attention,
}
"""By name: functions that remove a part and return how many layers or parameters they changed."""

TITLES = {
    'residual': 'attention residuals',
    'transforms': 'transforms of scores',
    'uniform': 'later layers',
    'none': 'later layers',
}
