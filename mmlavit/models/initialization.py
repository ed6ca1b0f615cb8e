"""How a LaViT starts: mmengine initialisers."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

from mmengine.model import BaseInit, PretrainedInit, update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner import CheckpointLoader
from torch import nn

from mmlavit.errors import ConfigError
from mmlavit.utils.config_types import type_name
from mmlavit.utils.weights import cut_prefix, load_what_fits


@WEIGHT_INITIALIZERS.register_module()
class FanInBias(BaseInit):
    """Draw biases uniformly from ``±1 / sqrt(fan_in)``, as torch does by default; weights stay as they are.

    Args:
        layer (str): Name of the class whose biases are drawn.
    """

    def __init__(self, *, layer: str) -> None:
        super().__init__(layer=layer)

    def __call__(self, module: nn.Module) -> None:
        """Draw the biases of all such layers in a module."""
        for child in module.modules():
            if type(child).__name__ in self.layer and child.bias is not None:
                bound = child.weight[0].numel() ** -0.5
                nn.init.uniform_(child.bias, -bound, bound)


@WEIGHT_INITIALIZERS.register_module(name='Pretrained', force=True)
class CheckedPretrainedInit(PretrainedInit):
    """mmengine's initialiser, under its name, except that a checkpoint of which nothing fits is refused.

    What does not fit is told in one line.
    """

    def __call__(self, module: nn.Module) -> None:
        """Load.

        Args:
            module (nn.Module): Module that starts from the checkpoint.

        Raises:
            UserError: If the checkpoint has nothing below the prefix, or nothing that fits the module.
        """
        checkpoint = CheckpointLoader.load_checkpoint(self.checkpoint, self.map_location)
        state = checkpoint.get('state_dict', checkpoint)
        if self.prefix is not None:
            state = cut_prefix(state, self.prefix, self.checkpoint)
        load_what_fits(module, state, self.checkpoint)
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=self._get_init_info())


DEFAULT_INIT = [
    dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
    # At std 0.02 a narrow model's GELU sees values near zero, where it is linear, and training from scratch stalls.
    dict(type='Kaiming', layer='Expansion', mode='fan_in', nonlinearity='linear', bias=0.0),
    # fan_in is one kernel for a depthwise convolution, so the same rule fits dense and depthwise ones.
    dict(type='Kaiming', layer='Conv2d', mode='fan_in', nonlinearity='relu', bias=0.0),
    # With biases of zero, a padded region gives tokens of exactly zero, and every LayerNorm on the way back
    # multiplies their gradient by 1 / sqrt(eps) = 1000.
    dict(type='FanInBias', layer='PatchConv'),
    dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
]


def resolve_init_cfg(
    init_cfg: dict | list[dict] | None, default: Sequence[dict] = DEFAULT_INIT
) -> tuple[list[dict], bool]:
    """Put the default initialisers under checkpoints, or in place of nothing.

    Args:
        init_cfg (dict or list[dict], optional): What the config says.
        default (Sequence[dict]): The default initialisers.

    Returns:
        tuple: Initialisers, and whether a checkpoint was asked for but none was named.

    Raises:
        ConfigError: If it is neither a dict nor a list of dicts, or one has no type.
    """
    entries = [init_cfg] if isinstance(init_cfg, dict) else [] if init_cfg is None else init_cfg
    remedy = "to start from a checkpoint: dict(type='Pretrained', checkpoint=..., prefix='backbone.')"
    if not isinstance(entries, (list, tuple)) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f'init_cfg must be a dict, a list of dicts or None, got {init_cfg!r}; {remedy}')
    for entry in entries:
        if 'type' not in entry:
            raise ConfigError(f'init_cfg needs a type, got {entry!r}; {remedy}')
    named = [entry for entry in entries if not _is_pretrained(entry) or entry.get('checkpoint') is not None]
    unnamed = len(named) < len(entries)
    if init_cfg is None or (entries and all(map(_is_pretrained, named))):
        named = [*deepcopy([*default]), *named]
    return named, unnamed


def _is_pretrained(entry: dict) -> bool:
    return type_name(entry) in ('Pretrained', 'PretrainedInit')
