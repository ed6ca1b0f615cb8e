"""Find out before anything is built whether the datasets of a config are there."""

from __future__ import annotations

import os.path as osp
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmlavit.errors import UserError

from .config_types import type_name

_MAX_LISTED = 4
_DOWNLOADED = {'CIFAR10', 'CIFAR100', 'MNIST', 'FashionMNIST'}  # mmpretrain gets them itself, unless told not to
_KNOWN = {'coco', 'ade', 'imagenet'}  # folders that our configs name


def missing_data(cfg: Config, splits: Iterable[str]) -> list[str]:
    """List the annotation files and folders that a config needs and that do not exist.

    Args:
        cfg (Config): A config of any of the three toolboxes.
        splits (Iterable[str]): Which data to look at: some of 'train', 'val', 'test'.

    Returns:
        list[str]: Missing paths in the order of the config, each once.
    """
    missing = {}
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if loader is None:
            continue
        paths = [path for leaf in find_leaf_configs(loader['dataset']) for path in _dataset_paths(leaf)]
        paths += _evaluator_paths(cfg, split)
        missing.update((path, None) for path in paths if not osp.exists(path))
    return list(missing)


def require_data(cfg: Config, splits: Iterable[str]) -> None:
    """Make sure that all data of a config is there.

    Args:
        cfg (Config): A config of any of the three toolboxes.
        splits (Iterable[str]): Which data to look at: some of 'train', 'val', 'test'.

    Raises:
        UserError: If something is missing; the line names the paths and where the layout is explained.
    """
    missing = missing_data(cfg, splits)
    if not missing:
        return
    listed = ', '.join(missing[:_MAX_LISTED])
    if len(missing) > _MAX_LISTED:
        listed += f' and {len(missing) - _MAX_LISTED} more'
    raise UserError(f'missing data: {listed}; {explain_missing(cfg, missing)}')


def explain_missing(cfg: Config, missing: Sequence[str]) -> str:
    """Say where missing data comes from.

    Args:
        cfg (Config): The config that names it.
        missing (Sequence[str]): Its paths.

    Returns:
        str: Half a sentence.
    """
    if any(path.startswith('~') for path in missing):
        return 'write the home folder in full: datasets do not expand ~'
    if all(Path(path).parts[:2] == ('data', 'handwritten') for path in missing):
        return 'docs/data.md of mmlavit has the layout; make it with: python tools/dataset_converters/handwritten.py'
    if 'configs/experiments/' in Path(cfg.filename or '').as_posix():
        return 'configs/experiments/README.md tells where to get it'
    if all(_KNOWN & set(Path(path).parts) for path in missing):
        return 'docs/data.md of mmlavit has the layout, and its tools/check_data.py --help tells where to get it'
    return 'correct data_root, ann_file or data_prefix in the config; they count from the folder in which the tool runs'


def find_leaf_configs(dataset: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the configs of datasets inside of wrappers such as ``RepeatDataset``.

    Args:
        dataset (Mapping): Config of a dataset or a wrapper.

    Yields:
        Mapping: Configs without others inside.
    """
    if 'dataset' in dataset:
        yield from find_leaf_configs(dataset['dataset'])
    elif 'datasets' in dataset:
        for part in dataset['datasets']:
            yield from find_leaf_configs(part)
    else:
        yield dataset


def find_metrics(evaluator: Any) -> list[Mapping[str, Any]]:
    """List the configs of the metrics of an evaluator, which may be one metric, several, or an evaluator of several.

    Args:
        evaluator (Mapping or Sequence[Mapping], optional): ``val_evaluator`` or ``test_evaluator``.

    Returns:
        list[Mapping]: The configs, without metrics that are objects.
    """
    metrics = evaluator.get('metrics', evaluator) if isinstance(evaluator, Mapping) else evaluator or ()
    metrics = [metrics] if isinstance(metrics, Mapping) else metrics
    return [metric for metric in metrics if isinstance(metric, Mapping)]


def _dataset_paths(dataset: Mapping[str, Any]) -> Iterator[str]:
    """Yield the paths that a dataset without others inside reads."""
    if is_remote(dataset):
        return
    if is_downloaded(dataset):
        return
    root = dataset.get('data_root') or ''
    ann_file = dataset.get('ann_file') or ''
    if ann_file:
        yield _join(root, ann_file)
    prefix = dataset.get('data_prefix') or ''
    if dataset.get('split') and not prefix and 'ImageNet' in str(dataset.get('type', '')):
        prefix = dataset['split']
    folders = prefix.values() if isinstance(prefix, Mapping) else [prefix]
    elsewhere = any(isinstance(step, Mapping) and is_remote(step) for step in dataset.get('pipeline') or ())
    for folder in folders:
        if (root or folder) and not elsewhere and '://' not in str(folder):
            yield _join(root, folder)


def is_downloaded(dataset: Mapping[str, Any]) -> bool:
    """Tell whether mmpretrain gets a dataset itself where it is not there.

    Args:
        dataset (Mapping): Config of a dataset.

    Returns:
        bool: True if a training would download it.
    """
    return type_name(dataset) in _DOWNLOADED and dataset.get('download', True)


def _evaluator_paths(cfg: Config, split: str) -> Iterator[str]:
    """Yield the annotation files that the metrics of ``split`` read on their own."""
    for metric in find_metrics(cfg.get(f'{split}_evaluator')):
        if metric.get('ann_file') and not is_remote(metric):
            yield metric['ann_file']


def is_remote(node: Mapping[str, Any]) -> bool:
    """Tell whether files are read from a storage service, where we cannot look.

    Args:
        node (Mapping): Config of a dataset, a metric or a transform that loads.

    Returns:
        bool: True if it names another backend than that of local files, or an address.
    """
    for key in ('backend_args', 'file_client_args'):
        if (node.get(key) or {}).get('backend', 'local') not in ('local', 'disk'):
            return True
    return '://' in f'{node.get("data_root")}{node.get("ann_file")}'


def _join(root: str, path: str) -> str:
    """Join as the datasets do; an absolute ``path`` stays. None of them expands ``~`` in a root."""
    return osp.join(root, osp.expanduser(path))
