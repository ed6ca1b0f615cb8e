"""Config files: read, and changed by ``--cfg-options``."""

from __future__ import annotations

import copy
import difflib
import inspect
import os.path as osp
import re
import sysconfig
import textwrap
import traceback
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from mmlavit.environment import SCOPES, check_environment
from mmlavit.errors import UserError

# Top-level keys that mmengine, the toolboxes and we read although most configs do not carry them.
_OPTIONAL_KEYS = set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'} | {
    'activation_checkpointing',
    'compile',
    'efficient_conv_bn_eval',
    'exact_resume',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'runner_type',
    'skip_broken_data',
    'strategy',
    'sync_bn',
    'tta_model',
    'tta_pipeline',
}


def find_config(name: str) -> str:
    """Find a config that an installed toolbox brings along.

    Args:
        name (str): A file, or ``TOOLBOX::FILE`` such as ``mmdet::retinanet/retinanet_r50_fpn_1x_coco.py``.

    Returns:
        str: The file; a name without ``::`` as it is.

    Raises:
        UserError: If the toolbox has no such config.
        EnvironmentProblem: If the toolbox is not installed.
    """
    toolbox, separator, file = name.partition('::')
    if not separator:
        return name
    if toolbox not in SCOPES:
        raise UserError(f'{name}: expected {", ".join(f"{scope}::FILE" for scope in SCOPES)} or the path of a config')
    check_environment(toolbox)
    # Not by mmengine's get_config: it looks for the name of a distribution, which the maintained builds do not have.
    root = Path(find_spec(toolbox).submodule_search_locations[0], '.mim', 'configs')
    if (root / file).is_file():
        return str(root / file)
    known = {path.name: f'{toolbox}::{path.relative_to(root).as_posix()}' for path in root.rglob('*.py')}
    close = difflib.get_close_matches(Path(file).name, known, n=3)
    hint = f'; close are {", ".join(known[name] for name in close)}' if close else ''
    raise UserError(f'{toolbox} has no config {file}{hint}')


def load_config(path: str, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config file and apply ``--cfg-options``.

    Args:
        path (str): Config file, or ``TOOLBOX::FILE`` of an installed toolbox; see :func:`find_config`.
        options (Mapping, optional): Dotted keys and their new values.

    Returns:
        Config: The config with the options merged.

    Raises:
        UserError: If the file or one of its bases cannot be read or has a mistake, or an option does not fit.
        EnvironmentProblem: If the toolbox that is named is not installed.
    """
    if path.startswith('mmlavit://') or path.endswith(('.pth', '.safetensors')):
        raise UserError(f'{path} is a checkpoint, but stands where a config is expected; --help has the order')
    path = find_config(path)
    if not osp.isfile(path):
        raise UserError(f'config {path} does not exist; expected the path of a config file')
    try:
        cfg = Config.fromfile(path)
        _resolve_imports(cfg._cfg_dict)
    except OSError as error:
        raise UserError(f'config {path} cannot be read: {error}') from error
    except SyntaxError as error:
        where = f'{error.filename or path}, line {error.lineno}'
        raise UserError(f'config {path} is no Python: {error.msg} ({where})') from error
    except UserError:
        raise
    except Exception as error:  # a config is a program, whose mistakes are its own
        missing = re.match(r'(mmseg\w+|mmdet\w+|mmpretrain) is not installed, please install', str(error))
        if missing and isinstance(error, ModuleNotFoundError):
            raise UserError(
                f'config {path} inherits from {missing[1]}, which mmengine looks for under that name. Do not install '
                'it if you have its maintained build: inherit from a copy of its file (docs/faq.md of mmlavit)'
            ) from error
        reason = textwrap.shorten(str(error), 300, placeholder=' ...')
        raise UserError(
            f'config {path} cannot be read: {type(error).__name__}: {reason}{_place_in_config(error)}'
        ) from error
    return merge_options(cfg, options) if options else cfg


def _resolve_imports(node: Any) -> None:
    """Look for what a config in pure Python imports, which mmengine does when a key is first read."""
    for value in node.values() if isinstance(node, Mapping) else node if isinstance(node, (list, tuple)) else ():
        _resolve_imports(value)


def _place_in_config(error: Exception) -> str:
    """Say which line of a config raised an error, if one did."""
    packages = *map(sysconfig.get_path, ('stdlib', 'purelib', 'platlib')), osp.dirname(osp.dirname(__file__))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if osp.isfile(frame.filename) and not frame.filename.startswith(packages)
    ]
    return f' ({frames[-1].filename}, line {frames[-1].lineno})' if frames else ''


def merge_options(cfg: Config, options: Mapping[str, Any]) -> Config:
    """Merge ``--cfg-options`` into a copy of a config, refusing keys that cannot be meant.

    A new key is allowed where the config has a dict (optional arguments are seldom spelled out), except
    at the top level, where mmengine would ignore it, and where it is a near miss of a key that exists.

    Args:
        cfg (Config): The config.
        options (Mapping): Dotted keys and their new values.

    Returns:
        Config: The merged copy.

    Raises:
        UserError: If a key leads nowhere.
    """
    for key in options:
        _check_key(cfg, key)
        _check_use(cfg, key, options)
    merged = copy.deepcopy(cfg)
    merged.merge_from_dict(dict(options))
    for key in options:  # mmengine takes one of the two, and the last word is the user's
        if key.endswith('.eta_min') and isinstance(schedule := _find(merged, key.rpartition('.')[0]), dict):
            schedule.pop('eta_min_ratio', None)
    return merged


def _find(cfg: Config, key: str) -> Any:
    """Give what is at a dotted key."""
    node = cfg
    for part in key.split('.'):
        node = node[int(part) if isinstance(node, list) else part]
    return node


def _check_key(cfg: Config, key: str) -> None:
    """Raise a UserError if the dotted ``key`` is not a place in ``cfg`` where a value may go."""
    node, walked = cfg._cfg_dict, ''
    for part in key.split('.'):
        if isinstance(node, tuple):  # into which mmengine merges nothing
            raise UserError(f'--cfg-options {key}: {walked} is {node!r}, a tuple; set {walked} itself instead')
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                number = f'a number below {len(node)}'
                raise UserError(
                    f'--cfg-options {key}: {walked} is a list of {len(node)}, expected {number} instead of {part!r}'
                )
            node = node[int(part)]
        elif isinstance(node, Mapping):
            if part not in node:
                _check_new_key(key, walked, part, node)
                return
            node = node[part]
        else:
            raise UserError(
                f'--cfg-options {key}: {walked} is {node!r} and has no entries; set {walked} itself instead'
            )
        walked = f'{walked}.{part}' if walked else part


def _check_use(cfg: Config, key: str, options: Mapping[str, Any]) -> None:
    """Raise a UserError if ``key`` is of a part that other places of a config file have copied, and nothing reads."""
    first, _, rest = key.partition('.')
    if first not in cfg or first in _OPTIONAL_KEYS:
        return
    copies = [place for name in cfg if name in _OPTIONAL_KEYS for place in _find_copies(cfg[name], cfg[first], name)]
    if not _is_telling(first, cfg[first]):  # such as a number, unless it has the same name there
        copies = [place for place in copies if place.rpartition('.')[2] == first]
    if copies and not all(any(f'{option}.'.startswith(f'{place}.') for option in options) for place in copies):
        raise UserError(
            f'--cfg-options {key} has no effect: {first} was used when the config was read, and nothing reads it any '
            f'more; set {" and ".join(f"{place}.{rest}".rstrip(".") for place in copies)}'
        )


def _is_telling(name: str, value: Any) -> bool:
    """Whether something equal elsewhere in a config is most likely a copy, and no coincidence."""
    if isinstance(value, str):
        return '/' in value or name.endswith('type')
    return isinstance(value, (list, tuple, Mapping)) and bool(value)


def _find_copies(node: Any, part: Any, walked: str) -> Iterator[str]:
    """Yield the places below ``node`` that have ``part``, or all that ``part`` has."""
    if isinstance(node, Mapping) and isinstance(part, Mapping):
        if part and all(name in node and node[name] == value for name, value in part.items()):
            yield walked
            return
    elif node == part:
        yield walked
        return
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _find_copies(value, part, f'{walked}.{name}')
    elif isinstance(node, (list, tuple)):
        for number, value in enumerate(node):
            yield from _find_copies(value, part, f'{walked}.{number}')


def _check_new_key(key: str, walked: str, part: str, node: Mapping[str, Any]) -> None:
    """Raise a UserError unless ``part``, absent from ``node``, is plausible as a new entry of it."""
    known = {*node} if walked else {*node, *_OPTIONAL_KEYS}
    # Names of one letter's difference; at the top level everything unknown is wrong anyway.
    close = difflib.get_close_matches(part, sorted(known), n=1, cutoff=0.9 if walked else 0.6)
    hint = f'; did you mean {close[0]}?' if close else ''
    if part not in known and (close or not walked):
        raise UserError(f'--cfg-options {key}: {walked or "the config"} has no {part!r}{hint}')
