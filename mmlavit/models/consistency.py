"""Whether the parts of a config fit each other: channels of backbone, neck and heads, and numbers of classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmlavit.errors import ConfigError
from mmlavit.utils.config_types import type_name

from .arch import resolve_arch

# Heads whose classes are not those of the dataset.
_OTHER_CLASSES = ('rpn_head', 'semantic_head', 'teacher')
_OTHER_CLASSES_TYPES = ('STDCHead', 'GroundingDINOHead', 'ATSSVLFusionHead')  # of boundaries; of words in a text
# Necks whose in_channels begin with the last map.
_DEEPEST_FIRST = ('YOLOV3Neck',)


def require_channels(model: Mapping[str, Any]) -> None:
    """Make sure that neck and heads take the channels that they get, as far as the config says both.

    Args:
        model (Mapping): Config of a classifier, detector or segmentor.

    Raises:
        ConfigError: If not; the message names the entry and its value.
    """
    model = model.get('module') or model  # of test-time augmentation
    maps = _find_backbone_channels(model.get('backbone'))
    if maps is None:
        return
    source = f'the backbone (arch={model["backbone"].get("arch", "small")!r})'
    neck = model.get('neck')
    several_necks = isinstance(neck, (list, tuple))  # one after the other
    for i, part in enumerate(neck if several_necks else [neck] if neck else []):
        place = f'model.neck.{i}' if several_necks else 'model.neck'
        if maps is not None and 'in_channels' in part:
            several = isinstance(part['in_channels'], (list, tuple))
            given = maps[::-1] if type_name(part) in _DEEPEST_FIRST else maps
            _require(f'{place}.in_channels', part['in_channels'], given if several else maps[-1], source)
        maps, source = _find_neck_channels(part, maps), 'the neck'
    for place, head in _find_heads(model):
        _check_head(place, head, maps, source)


def require_classes(
    model: Mapping[str, Any], metainfo: Mapping[str, Any], data: str, preprocessor: Mapping[str, Any] | None = None
) -> None:
    """Make sure that a model has as many classes as a dataset.

    Args:
        model (Mapping): Config of a classifier, detector or segmentor.
        metainfo (Mapping): That of the dataset: ``classes``, and for panoptic segmentation ``thing_classes``, which
            its heads of boxes and masks have. Without ``classes`` nothing is known.
        data (str): What the message calls it, such as ``train_dataloader``.
        preprocessor (Mapping, optional): ``data_preprocessor`` of the config, which a model without its own gets; only
            looked at where it reads its number of classes.

    Raises:
        ConfigError: If not; the message names the entry of the model.
    """
    classes = metainfo.get('classes')
    if classes is None:
        return
    if isinstance(classes, str):
        raise ConfigError(f'{data}: metainfo.classes is the string {classes!r}; expected a list, as [{classes!r}]')
    beside = {} if 'data_preprocessor' in model else preprocessor or {}
    if not (beside.get('to_onehot') or beside.get('batch_augments')):
        beside = {}  # mmpretrain's reads its number of classes for these alone
    for place, number in (*find_class_numbers(model, 'model'), *find_class_numbers(beside, 'data_preprocessor')):
        if number not in (len(classes), len(metainfo.get('thing_classes') or classes)):
            names = ', '.join(map(str, classes[:3])) + (', ...' if len(classes) > 3 else '')
            raise ConfigError(
                f'{place} is {number}, but {data} has {len(classes)} classes ({names}); set num_classes of all heads '
                'to that, or correct metainfo.classes (docs/recipes.md of mmlavit, your data)'
            )


def find_class_numbers(node: Any, place: str) -> Iterator[tuple[str, int]]:
    """Yield every ``num_classes`` in the config of a model that has to be that of the dataset.

    Args:
        node (Any): The config, or a part of it.
        place (str): Its dotted name.

    Yields:
        tuple[str, int]: Dotted name and value.
    """
    if isinstance(node, Mapping):
        if type_name(node) in _OTHER_CLASSES_TYPES:
            return
        for key, value in node.items():
            if key == 'num_classes' and isinstance(value, int):
                yield f'{place}.{key}', value
            elif key not in _OTHER_CLASSES:
                yield from find_class_numbers(value, f'{place}.{key}')
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from find_class_numbers(value, f'{place}.{index}')


def _find_backbone_channels(backbone: Any) -> list[int] | None:
    """Give the channels of a LaViT's maps; None for other backbones, or if ``out_indices`` is wrong itself."""
    if not isinstance(backbone, Mapping) or type_name(backbone) != 'LaViT':
        return None
    indices = backbone.get('out_indices', (0, 1, 2, 3))
    if not isinstance(indices, (list, tuple)) or not indices or any(i not in range(4) for i in indices):
        return None
    dims = resolve_arch(backbone.get('arch', 'small')).embed_dims
    return [dims[i] for i in indices]


def _find_neck_channels(neck: Mapping[str, Any], maps: list[int] | None) -> list[int] | None:
    """Give the channels of the maps of a neck; None if the config does not say so."""
    kind, out, number = type_name(neck), neck.get('out_channels'), neck.get('num_outs')
    if kind == 'GlobalAveragePooling':
        return maps
    return [out] * number if isinstance(out, int) and isinstance(number, int) else None


def _find_heads(model: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the heads that get maps, by their dotted names."""
    for name in ('head', 'bbox_head', 'rpn_head', 'decode_head', 'auxiliary_head'):
        heads = model.get(name)
        if isinstance(heads, Mapping):
            yield f'model.{name}', heads
        elif isinstance(heads, (list, tuple)):
            yield from ((f'model.{name}.{i}', head) for i, head in enumerate(heads) if isinstance(head, Mapping))


def _check_head(place: str, head: Mapping[str, Any], maps: list[int] | None, source: str) -> None:
    """Raise a ConfigError if a head does not take what it gets."""
    wanted = head.get('in_channels')
    if maps is None or wanted is None:
        return
    index = head.get('in_index', -1)
    chosen = index if isinstance(index, (list, tuple)) else [index]
    if any(not isinstance(i, int) or not -len(maps) <= i < len(maps) for i in chosen):
        raise ConfigError(f'{place}.in_index is {index}, but {source} gives {len(maps)} maps')
    if not isinstance(wanted, (list, tuple)):
        # Heads of detectors read all maps, the others one.
        given = maps[0] if place.endswith(('bbox_head', 'rpn_head')) else maps[chosen[0]]
        _require(f'{place}.in_channels', wanted, given, source)
    elif isinstance(index, (list, tuple)):
        _require(f'{place}.in_channels', list(wanted), [maps[i] for i in chosen], source)


def _require(place: str, value: Any, expected: Any, source: str) -> None:
    """Raise a ConfigError unless an entry has the value that it needs."""
    value = list(value) if isinstance(value, (list, tuple)) else value
    if value != expected:
        raise ConfigError(f'{place} is {value}, but {source} gives {expected}; set it to {expected}')
