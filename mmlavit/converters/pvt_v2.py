"""Convert weights of PVTv2 or MiT, or of a LaViT whose layers are all vanilla, to those of a LaViT."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mmlavit.errors import ConfigError

# For each layout of names, by who writes it: the number of its first stage, and for each module of ours that module's
# name there. S is the number of a stage, J that of a block.
_LAYOUTS: dict[str, tuple[int, dict[str, str]]] = {
    'timm': (
        0,
        {
            'stages.S.patch_embed.proj': 'stages.S.downsample.proj',
            'stages.S.patch_embed.norm': 'stages.S.downsample.norm',
            'stages.S.blocks.J.norm1': 'stages.S.blocks.J.norm1',
            'stages.S.blocks.J.norm2': 'stages.S.blocks.J.norm2',
            'stages.S.blocks.J.attn.q': 'stages.S.blocks.J.attn.q',
            'stages.S.blocks.J.attn.kv': 'stages.S.blocks.J.attn.kv',
            'stages.S.blocks.J.attn.proj': 'stages.S.blocks.J.attn.proj',
            'stages.S.blocks.J.attn.reduction.conv': 'stages.S.blocks.J.attn.sr',
            'stages.S.blocks.J.attn.reduction.norm': 'stages.S.blocks.J.attn.norm',
            'stages.S.blocks.J.mlp.fc1': 'stages.S.blocks.J.mlp.fc1',
            'stages.S.blocks.J.mlp.dwconv': 'stages.S.blocks.J.mlp.dwconv',
            'stages.S.blocks.J.mlp.fc2': 'stages.S.blocks.J.mlp.fc2',
            'stages.S.norm': 'stages.S.norm',
        },
    ),
    'the official repository': (
        1,
        {
            'stages.S.patch_embed.proj': 'patch_embedS.proj',
            'stages.S.patch_embed.norm': 'patch_embedS.norm',
            'stages.S.blocks.J.norm1': 'blockS.J.norm1',
            'stages.S.blocks.J.norm2': 'blockS.J.norm2',
            'stages.S.blocks.J.attn.q': 'blockS.J.attn.q',
            'stages.S.blocks.J.attn.kv': 'blockS.J.attn.kv',
            'stages.S.blocks.J.attn.proj': 'blockS.J.attn.proj',
            'stages.S.blocks.J.attn.reduction.conv': 'blockS.J.attn.sr',
            'stages.S.blocks.J.attn.reduction.norm': 'blockS.J.attn.norm',
            'stages.S.blocks.J.mlp.fc1': 'blockS.J.mlp.fc1',
            'stages.S.blocks.J.mlp.dwconv': 'blockS.J.mlp.dwconv.dwconv',
            'stages.S.blocks.J.mlp.fc2': 'blockS.J.mlp.fc2',
            'stages.S.norm': 'normS',
        },
    ),
    'mmdet': (
        0,
        {
            'stages.S.patch_embed.proj': 'layers.S.0.projection',
            'stages.S.patch_embed.norm': 'layers.S.0.norm',
            'stages.S.blocks.J.norm1': 'layers.S.1.J.norm1',
            'stages.S.blocks.J.norm2': 'layers.S.1.J.norm2',
            'stages.S.blocks.J.attn.qkv': 'layers.S.1.J.attn.attn.in_proj',
            'stages.S.blocks.J.attn.proj': 'layers.S.1.J.attn.attn.out_proj',
            'stages.S.blocks.J.attn.reduction.conv': 'layers.S.1.J.attn.sr',
            'stages.S.blocks.J.attn.reduction.norm': 'layers.S.1.J.attn.norm',
            'stages.S.blocks.J.mlp.fc1': 'layers.S.1.J.ffn.layers.0',
            'stages.S.blocks.J.mlp.dwconv': 'layers.S.1.J.ffn.layers.1',
            'stages.S.blocks.J.mlp.fc2': 'layers.S.1.J.ffn.layers.4',
            'stages.S.norm': 'layers.S.2',
        },
    ),
    'transformers': (
        0,
        {
            'stages.S.patch_embed.proj': 'encoder.layers.S.patch_embedding.proj',
            'stages.S.patch_embed.norm': 'encoder.layers.S.patch_embedding.layer_norm',
            'stages.S.blocks.J.norm1': 'encoder.layers.S.blocks.J.layer_norm_1',
            'stages.S.blocks.J.norm2': 'encoder.layers.S.blocks.J.layer_norm_2',
            'stages.S.blocks.J.attn.q': 'encoder.layers.S.blocks.J.attention.query',
            'stages.S.blocks.J.attn.k': 'encoder.layers.S.blocks.J.attention.key',
            'stages.S.blocks.J.attn.v': 'encoder.layers.S.blocks.J.attention.value',
            'stages.S.blocks.J.attn.proj': 'encoder.layers.S.blocks.J.attention.proj',
            'stages.S.blocks.J.attn.reduction.conv': 'encoder.layers.S.blocks.J.attention.spatial_reduction',
            'stages.S.blocks.J.attn.reduction.norm': 'encoder.layers.S.blocks.J.attention.layer_norm',
            'stages.S.blocks.J.mlp.fc1': 'encoder.layers.S.blocks.J.mlp.dense1',
            'stages.S.blocks.J.mlp.dwconv': 'encoder.layers.S.blocks.J.mlp.dwconv.dwconv',
            'stages.S.blocks.J.mlp.fc2': 'encoder.layers.S.blocks.J.mlp.dense2',
            'stages.S.norm': 'encoder.layers.S.layer_norm',
        },
    ),
}
# The vanilla twin of a LaViT has PVTv2's layers.
_LAYOUTS['mmlavit'] = (0, {ours: ours for ours in _LAYOUTS['timm'][1]})
_CLASSIFIERS = ('head.', 'classifier.')  # of ImageNet's classes, in the files of classifiers


class Converted(NamedTuple):
    """What became of the tensors of a checkpoint; every one of them is in exactly one place.

    Args:
        layout (str): Whose names the backbone had.
        backbone (dict[str, Tensor]): Weights of a LaViT, without prefix.
        others (dict[str, Tensor]): What a whole detector or segmentor has besides its backbone, by its own names.
        classifier (list[str]): Names of a classification head, which is left out.
    """

    layout: str
    backbone: dict[str, Tensor]
    others: dict[str, Tensor]
    classifier: list[str]


def convert_pvt_v2(state_dict: Mapping[str, Tensor]) -> Converted:
    """Rename PVTv2 weights to those of a LaViT with ``arch='pvt_v2_b2'`` or another of PVTv2's sizes.

    The names may be timm's, the official repository's, mmdet's or transformers', of a backbone, a classifier or (with
    the prefix ``backbone.``) of a whole detector or segmentor; or those of a LaViT whose layers are all vanilla, the
    vanilla twin of any architecture. MiT of mmseg (SegFormer's) has the layers and names of mmdet's PVTv2.

    They fit a LaViT with any ``num_va_layers``: a less-attention layer takes values, projection, norms and
    feed-forward, and leaves out queries and keys when they are loaded; the transforms and attention residuals keep
    their initial values. With ``num_va_layers=depths`` and ``attention_residual=False`` it computes what PVTv2
    computes.

    Args:
        state_dict (Mapping[str, Tensor]): PVTv2 weights.

    Returns:
        Converted: All weights, and where they went.

    Raises:
        ConfigError: If a name of the backbone is not one of PVTv2's, or one is missing.
    """
    whole = any(name.startswith('backbone.') for name in state_dict)
    others, classifier, backbone = {}, [], {}
    for name, value in state_dict.items():
        if whole and not name.startswith('backbone.'):
            others[name] = value
        elif name.startswith(_CLASSIFIERS):
            classifier.append(name)
        else:
            name = name.removeprefix('backbone.').removeprefix('timm_model.').removeprefix('pvt_v2.')
            name = re.sub(r'^stages_(\d)', r'stages.\1', name)  # timm's with features_only=True
            backbone[name] = value
    if not backbone:
        raise ConfigError('there are no weights of a backbone; expected those of a PVTv2')
    layout = _find_layout(backbone)
    first, modules = _LAYOUTS[layout]
    converted = {}
    for name, value in backbone.items():
        module, parameter = _split(name)
        ours = _rename(module, first, modules)
        if ours is None or _is_of_linear_variant(ours, value):
            raise ConfigError(
                f'{name!r} is not a key of PVTv2 in the layout of {layout} (linear variants are not supported, nor a '
                'LaViT with less-attention layers or attention residuals)'
            )
        if value.dim() == 4 and ours.endswith(('.fc1', '.fc2')):  # mmdet has 1x1 convolutions there
            value = value.flatten(1)
        converted.update((f'{part}.{parameter}', tensor) for part, tensor in _take_apart(ours, value))
    return Converted(layout, _join_keys_and_values(converted), others, classifier)


def _is_of_linear_variant(module: str, value: Tensor) -> bool:
    """Tell whether it is of a reduction of PVTv2's linear variants: their names are the same, but they pool first."""
    in_last_stage = re.match(r'stages\.3\..*\.reduction\.', module) is not None
    return in_last_stage or (module.endswith('.reduction.conv') and value.shape[2:] == (1, 1))


def _find_layout(state_dict: Mapping[str, Tensor]) -> str:
    """Choose the layout that knows the most names."""

    def known(layout: str) -> int:
        first, modules = _LAYOUTS[layout]
        return sum(_rename(_split(name)[0], first, modules) is not None for name in state_dict)

    return max(_LAYOUTS, key=known)


def _split(name: str) -> tuple[str, str]:
    """Split a name into module and 'weight' or 'bias'; ``in_proj_weight`` of torch's attention is one of the latter."""
    module, _, parameter = name.rpartition('.')
    if parameter.startswith('in_proj_'):
        return f'{module}.in_proj', parameter.removeprefix('in_proj_')
    return module, parameter


def _rename(module: str, first: int, modules: Mapping[str, str]) -> str | None:
    """Give our name of a module, None if it has none."""
    if module.startswith('patch_embed.'):  # timm's first one stands outside of the stages
        module = module.replace('patch_embed.', 'stages.0.downsample.', 1)
    for ours, theirs in modules.items():
        pattern = re.escape(theirs).replace('S', r'(?P<stage>\d)').replace('J', r'(?P<block>\d+)')
        match = re.fullmatch(pattern, module)
        if match:
            stage, block = int(match['stage']) - first, match.groupdict().get('block')
            return ours.replace('S', str(stage)).replace('J', block or '')
    return None


def _take_apart(module: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """Split queries, keys and values that stand in one tensor."""
    attn, _, kind = module.rpartition('.')
    if kind in ('qkv', 'kv'):
        parts = value.chunk(len(kind))
        return [(f'{attn}.{letter}', part.clone()) for letter, part in zip(kind, parts, strict=True)]
    return [(module, value)]


def _join_keys_and_values(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put keys and values into one tensor, as LaViT has them."""
    joined = dict(state_dict)
    for name, key in state_dict.items():
        match = re.fullmatch(r'(.*\.attn)\.k\.(weight|bias)', name)
        if match:
            del joined[name]
            value = joined.pop(f'{match[1]}.v.{match[2]}', None)
            if value is None:
                raise ConfigError(
                    f'there are keys but no values ({match[2]}) of {match[1]}; is the checkpoint complete?'
                )
            joined[f'{match[1]}.kv.{match[2]}'] = torch.cat([key, value])
    return joined
