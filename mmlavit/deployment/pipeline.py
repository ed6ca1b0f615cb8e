"""A test pipeline as plain values, for a runtime that has no OpenMMLab."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import TRANSFORMS

from mmlavit.errors import ConfigError, UserError
from mmlavit.utils.config_types import type_name
from mmlavit_serve.resizing import CV2_CODES, PILLOW_FILTERS

# Steps that do nothing to the pixels of an image that was read as OpenCV reads it.
_SILENT = {'LoadAnnotations', 'PackInputs', 'PackDetInputs', 'PackSegInputs'}
# Those that `mmlavit_serve.resizing` has, with the arguments that count.
_KNOWN = {
    'Resize': ('scale', 'scale_factor', 'keep_ratio', 'interpolation', 'backend'),
    'ResizeEdge': ('scale', 'edge', 'interpolation', 'backend'),
    'CenterCrop': ('crop_size',),
}


def find_test_dataset(cfg: Config) -> ConfigDict:
    """Find the dataset that a config tests on, also if others are wrapped around it.

    Args:
        cfg (Config): The config.

    Returns:
        ConfigDict: Config of the dataset; of several with the same pipeline, the first.

    Raises:
        UserError: If there is none that says how images are prepared.
    """
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'pipeline' not in dataset:
        inner = dataset.get('datasets') or [dataset.get('dataset')]
        if inner[0] is None or any(one.get('pipeline') != inner[0].get('pipeline') for one in inner):
            raise UserError(
                'the config has no test_dataloader whose dataset has one pipeline; it says how images are prepared, '
                'so add one (its files need not be there)'
            )
        dataset = inner[0]
    return dataset


def describe_pipeline(pipeline: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """List what a test pipeline does to an image between reading and packing.

    Args:
        pipeline (Sequence[Mapping]): Transforms of a config, in the scope of its toolbox.

    Returns:
        list[dict]: For each step its type and all arguments that change pixels, as values for JSON.

    Raises:
        ConfigError: For a step that exported models do not know, or if images come from no files.
    """
    if not any(type_name(step).startswith('LoadImageFrom') for step in pipeline):
        raise ConfigError(
            'the test pipeline has no LoadImageFromFile, so the order of colours in its images is not known; what is '
            'exported reads files'
        )
    return [step for config in pipeline for step in _describe_step(config)]


def describe_known_steps(pipeline: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """List those steps of a test pipeline that :func:`describe_pipeline` knows, without the others.

    Args:
        pipeline (Sequence[Mapping]): As there.

    Returns:
        list[dict]: As there.
    """
    steps = []
    for config in pipeline:
        with suppress(ConfigError):
            steps += _describe_step(config)
    return steps


def _describe_step(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Describe a step that changes pixels; nothing if it does not. A ConfigError for one that is not exported."""
    transform = TRANSFORMS.build(dict(config))
    name = type(transform).__name__
    if name == 'LoadImageFromFile':
        if transform.color_type != 'color' or transform.to_float32 or transform.imdecode_backend != 'cv2':
            raise ConfigError(f'{dict(config)} of the test pipeline reads images in a way that is not exported')
    elif name in _KNOWN:
        step = dict(type=name, **{key: _plain(getattr(transform, key)) for key in _KNOWN[name]})
        _check(step, transform)
        return [step]
    elif name not in _SILENT:
        raise ConfigError(
            f'{name} of the test pipeline is not exported; known are {", ".join([*_KNOWN, *sorted(_SILENT)])}'
        )
    return []


def _plain(value: Any) -> Any:
    """Turn tuples into lists, as JSON does."""
    return list(value) if isinstance(value, (list, tuple)) else value


def _check(step: dict[str, Any], transform: object) -> None:
    """Fill in a scale factor for both axes; raise a ConfigError for what has no equal without OpenMMLab."""
    if step.get('scale_factor') is not None and not isinstance(step['scale_factor'], list):
        step['scale_factor'] = [step['scale_factor']] * 2
    if getattr(transform, 'auto_pad', False):
        raise ConfigError('CenterCrop with auto_pad=True is not exported')
    if 'interpolation' in step:
        if step['backend'] is None:  # mmcv's own
            from mmcv.image.geometric import imread_backend

            step['backend'] = imread_backend
        known = {'cv2': CV2_CODES, 'pillow': PILLOW_FILTERS}.get(step['backend'], ())
        if step['interpolation'] not in known:
            raise ConfigError(f'{step} of the test pipeline is not exported; known are {", ".join(known)}')
