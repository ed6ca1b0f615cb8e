"""Checks on checkpoint files, and what is published of them."""

from __future__ import annotations

import ast
import hashlib
import io
import os
import os.path as osp
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from mmengine.config import Config

from mmlavit.errors import UserError
from mmlavit.version import __version__

from .checkpoint import allow_mmengine_checkpoints

# Of a checkpoint's meta: what a user of the weights needs. The rest tells when, where and by whom it was trained.
_PUBLISHED_META = ('dataset_meta', 'epoch', 'iter', 'mmengine_version')
# Of the config in it: what only makes sense on the machine that trained.
_PRIVATE_KEYS = {'launcher', 'load_from', 'resume', 'work_dir'}


def require_checkpoint(path: str, what: str = 'checkpoint') -> None:
    """Make sure that a checkpoint file exists. Addresses such as ``https://...`` are left alone.

    Args:
        path (str): File or address.
        what (str): How the message calls it.

    Raises:
        UserError: If it is a file and does not exist.
    """
    # Two letters at least, so that no drive letter counts as the scheme of an address.
    if not re.match(r'\w{2,}:', path) and not osp.isfile(osp.expanduser(path)):
        raise UserError(f'{what} {path} does not exist; expected a .pth file')


def require_checkpoints(cfg: Config) -> None:
    """Make sure that the weights a config starts from exist.

    Args:
        cfg (Config): The config, with ``load_from`` and any ``init_cfg`` of type ``Pretrained``.

    Raises:
        UserError: If a file is missing.
    """
    if cfg.get('load_from'):
        require_checkpoint(cfg.load_from)
        return
    for path in _pretrained(cfg.model):
        require_checkpoint(path, 'init_cfg.checkpoint')


def _pretrained(node: Any) -> Iterator[str]:
    """Yield the checkpoints of every ``init_cfg=dict(type='Pretrained', ...)`` below ``node``."""
    if isinstance(node, Mapping):
        if node.get('type') == 'Pretrained' and isinstance(node.get('checkpoint'), str):
            yield node['checkpoint']
        for value in node.values():
            yield from _pretrained(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _pretrained(value)


def load_checkpoint(path: str) -> dict[str, Any]:
    """Load a checkpoint file, without running code that may be in it.

    Args:
        path (str): A training checkpoint of mmengine, or a file of weights.

    Returns:
        dict[str, Any]: With the weights under 'state_dict'.

    Raises:
        UserError: If there is no such file or it cannot be loaded safely.
    """
    require_checkpoint(path)
    allow_mmengine_checkpoints()  # again: whenever the maintained mmengine loads a file, it takes back its permissions
    try:
        checkpoint = torch.load(osp.expanduser(path), map_location='cpu', weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        found = re.search(r'GLOBAL (\S+) was not an allowed', str(error))
        reason = f'it has a {found[1]} inside, which could run code' if found else 'it is none, or it is damaged'
        raise UserError(f'{path} cannot be loaded as a checkpoint of weights and numbers: {reason}') from error
    weights = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, Mapping) else None
    if not isinstance(weights, Mapping) or not weights or not all(map(torch.is_tensor, weights.values())):
        raise UserError(f'{path} has no weights; expected a checkpoint with a state_dict')
    return checkpoint if 'state_dict' in checkpoint else dict(state_dict=checkpoint)


def strip_checkpoint(checkpoint: Mapping[str, Any], weights: Literal['ema', 'raw'] | None = None) -> dict[str, Any]:
    """Keep of a training checkpoint what its users need: the weights, the classes and the config.

    Optimizer, schedules, states of hooks and the log go, and with them what names the machine.

    Args:
        checkpoint (Mapping): As :func:`load_checkpoint` gives it.
        weights (str, optional): 'ema' for the averaged weights of an ``EMAHook``, 'raw' for those that were
            trained; default: the averaged ones if there are any, which are those that a test uses.

    Returns:
        dict[str, Any]: A checkpoint with 'meta' and 'state_dict', of tensors and plain Python values.

    Raises:
        UserError: If averaged weights are asked for and there are none.
    """
    state_dict = dict(checkpoint['state_dict'])
    other = checkpoint.get('ema_state_dict')
    if weights == 'ema' and other is None:
        raise UserError('the checkpoint has no averaged (EMA) weights; it was trained without an EMAHook')
    if weights == 'raw' and other is not None:
        # EMAHook exchanges the two when it saves: the averaged weights are the checkpoint's state_dict.
        raw = {key.removeprefix('module.'): value for key, value in other.items() if key.startswith('module.')}
        state_dict.update((key, value) for key, value in raw.items() if key in state_dict)
    meta = checkpoint.get('meta') or {}
    published = {key: _plain(meta[key]) for key in _PUBLISHED_META if key in meta}
    if isinstance(meta.get('cfg'), str):
        with suppress(SyntaxError):  # text that is no config helps nobody
            published['cfg'] = _without_private_keys(meta['cfg'])
    return dict(meta={**published, 'mmlavit_version': __version__}, state_dict=state_dict)


def save_published(checkpoint: Mapping[str, Any], path: Path) -> Path:
    """Write a checkpoint under a name that ends in its hash, as ``mim`` and ``torch.hub`` check it.

    Args:
        checkpoint (Mapping): What to write.
        path (Path): Such as ``lavit_s.pth``.

    Returns:
        Path: The file, such as ``lavit_s-0a1b2c3d.pth``: the first 8 digits of its SHA-256.
    """
    # Through memory: a file would carry its own name inside, and the hash would depend on it.
    content = io.BytesIO()
    torch.save(checkpoint, content)
    data = content.getvalue()
    final = path.with_name(f'{path.stem}-{hashlib.sha256(data).hexdigest()[:8]}.pth')
    partial = final.with_suffix('.partial')
    partial.write_bytes(data)
    os.replace(partial, final)
    return final


def _plain(value: Any) -> Any:
    """Turn NumPy's numbers and arrays inside ``value`` into Python's, which every ``torch.load`` reads."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    return value.tolist() if hasattr(value, 'tolist') and not torch.is_tensor(value) else value


def _without_private_keys(text: str) -> str:
    """Remove the assignments of ``_PRIVATE_KEYS`` from a config's text, without running it."""
    lines = text.splitlines()
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', None) in _PRIVATE_KEYS:
            lines[node.lineno - 1 : node.end_lineno] = [None] * (node.end_lineno - node.lineno + 1)
    return '\n'.join(line for line in lines if line is not None) + '\n'
