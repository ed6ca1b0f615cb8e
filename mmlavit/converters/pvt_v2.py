"""Convert public PVTv2 weights: the nearest start there is, since no LaViT weights were published."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from mmlavit.errors import ConfigError

# (pattern, replacement), tried in order. First timm's names, then those of the official PVTv2 repository.
_RULES = [
    (r'patch_embed\.(.+)', r'stages.0.patch_embed.\1'),
    (r'stages\.(\d)\.downsample\.(.+)', r'stages.\1.patch_embed.\2'),
    (r'stages\.(\d)\.(blocks\.\d+|norm)\.(.+)', r'stages.\1.\2.\3'),
    (r'patch_embed(\d)\.(.+)', r'stages.{-}.patch_embed.\2'),
    (r'block(\d)\.(\d+)\.(.+)', r'stages.{-}.blocks.\2.\3'),
    (r'norm(\d)\.(.+)', r'stages.{-}.norm.\2'),
]
_INNER = [
    ('.attn.sr.', '.attn.reduction.conv.'),
    ('.attn.norm.', '.attn.reduction.norm.'),
    ('.dwconv.dwconv.', '.dwconv.'),
]

_KNOWN = re.compile(
    r'stages\.\d\.(patch_embed\.(proj|norm)|norm|blocks\.\d+\.(norm[12]|attn\.(q|kv|proj|reduction\.(conv|norm))'
    r'|mlp\.(fc1|dwconv|fc2)))\.(weight|bias)'
)

PVT_V2_EPS = (1e-5, 1e-5, 1e-6)
"""LayerNorm epsilons of PVTv2, as ``norm_eps`` of an architecture."""


def convert_pvt_v2(state_dict: Mapping[str, Tensor], num_va_layers: Sequence[int] | None = None) -> dict[str, Tensor]:
    """Rename PVTv2 weights (timm's or the official repository's names) to those of a LaViT.

    The LaViT needs ``patch_kernels=(7, 3, 3, 3)`` and PVTv2's sizes in its architecture. With
    ``num_va_layers=depths`` and ``attention_residual=False`` it then computes what PVTv2 computes.

    Args:
        state_dict (Mapping[str, Tensor]): PVTv2 weights; the classification head is left out.
        num_va_layers (Sequence[int], optional): Vanilla layers of each stage of the LaViT; None: all of them. A
            less-attention layer takes the values' half of ``kv``, and its queries and keys are dropped; the transforms
            and attention residuals keep their initial values.

    Returns:
        dict[str, Tensor]: Backbone weights, without prefix.

    Raises:
        ConfigError: If a key is not one of PVTv2's.
    """
    converted = {}
    for key, value in state_dict.items():
        if key.startswith('head.'):
            continue
        name = _rename(key)
        layer = re.fullmatch(r'stages\.(\d)\.blocks\.(\d+)\.attn\.(q|kv)\.(weight|bias)', name)
        if layer and num_va_layers is not None and int(layer[2]) >= num_va_layers[int(layer[1])]:
            if layer[3] == 'q':
                continue
            name, value = name.replace('.kv.', '.v.'), value.chunk(2)[1].clone()
        converted[name] = value
    return converted


def _rename(key: str) -> str:
    for pattern, replacement in _RULES:
        match = re.fullmatch(pattern, key)
        if match:
            if '{-}' in replacement:  # the official repository counts stages from one
                replacement = replacement.replace('{-}', str(int(match[1]) - 1))
            name = match.expand(replacement)
            for old, new in _INNER:
                name = name.replace(old, new)
            if _KNOWN.fullmatch(name):
                return name
    raise ConfigError(f'{key!r} is not a key of PVTv2 (linear variants are not supported)')
