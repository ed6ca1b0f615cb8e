"""Checkpoints for others: what the users of a model need of a training checkpoint, in a file named by its content."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch

from mmlavit.errors import UserError
from mmlavit.version import __version__

from .local_files import write_file

# Of a checkpoint's meta: what a user of the weights needs. The rest tells when, where and by whom it was trained.
_PUBLISHED_META = ('dataset_meta', 'epoch', 'iter', 'mmengine_version')
# Of the config in it: what only makes sense on the machine that trained.
_PRIVATE_KEYS = {'launcher', 'load_from', 'resume', 'work_dir'}


def strip_checkpoint(
    checkpoint: Mapping[str, Any], weights: Literal['ema', 'raw'] | None = None, half: bool = False
) -> dict[str, Any]:
    """Keep of a training checkpoint what its users need: the weights, the classes and the config.

    Optimizer, schedules, states of hooks and the log go, and with them what names the machine. Classes that the
    training data had no names for are those of any dataset in the config.

    Args:
        checkpoint (Mapping): As :func:`~mmlavit.utils.checkpoint.load_checkpoint` gives it.
        weights (str, optional): 'ema' for the averaged weights of an ``EMAHook``, 'raw' for those that were
            trained; default: the averaged ones if there are any, which are those that a test uses.
        half (bool): Round single precision to half.

    Returns:
        dict[str, Any]: A checkpoint with 'meta' and 'state_dict', of tensors and plain Python values.

    Raises:
        UserError: If averaged weights are asked for and there are none, one is not finite, or one is too large for half
            precision.
    """
    state_dict = dict(checkpoint['state_dict'])
    other = checkpoint.get('ema_state_dict')
    if weights == 'ema' and other is None:
        raise UserError('the checkpoint has no averaged (EMA) weights; it was trained without an EMAHook')
    if weights == 'raw' and other is not None:
        # EMAHook exchanges the two when it saves: the averaged weights are the checkpoint's state_dict.
        raw = {key.removeprefix('module.'): value for key, value in other.items() if key.startswith('module.')}
        state_dict.update((key, value) for key, value in raw.items() if key in state_dict)
    for name, value in state_dict.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(
                f'{name} has values that are not finite: the training diverged; choose an earlier checkpoint'
            )
    if half:
        state_dict = {key: _round(key, value) for key, value in state_dict.items()}
    meta = checkpoint.get('meta') or {}
    published = {key: _plain(meta[key]) for key in _PUBLISHED_META if key in meta}
    if isinstance(meta.get('cfg'), str):
        with suppress(SyntaxError):  # text that is no config helps nobody
            published['cfg'] = _without_private_keys(meta['cfg'])
            classes = _find_classes(meta['cfg'])
            if classes and not published.get('dataset_meta'):
                published['dataset_meta'] = dict(classes=classes)
    return dict(meta={**published, 'mmlavit_version': __version__}, state_dict=state_dict)


def save_published(checkpoint: Mapping[str, Any], path: Path, shard_size: float = math.inf) -> list[Path]:
    """Write a checkpoint under a name that ends in its hash, as ``mim`` and ``torch.hub`` check it.

    Args:
        checkpoint (Mapping): What :func:`strip_checkpoint` gives.
        path (Path): Such as ``lavit_s.pth`` or ``lavit_s.safetensors``. The latter has the meta as JSON in its header.
        shard_size (float): Bytes of weights in a file at most, unless one tensor has more; for safetensors.

    Returns:
        list[Path]: The file, such as ``lavit_s-0a1b2c3d.pth``: the first 8 digits of its SHA-256. Of several,
            ``lavit_s-0a1b2c3d-00001-of-00002.safetensors`` and so on, with those of the SHA-256 of all, one after the
            other.
    """
    # Through memory: a file would carry its own name inside, and the hash would depend on it.
    if path.suffix == '.safetensors':
        shards = [_as_safetensors(weights, checkpoint['meta']) for weights in _split(checkpoint, shard_size)]
    else:
        shards = [_as_pickle(checkpoint)]
    digits = hashlib.sha256(b''.join(shards)).hexdigest()[:8]
    files = []
    for number, shard in enumerate(shards, 1):
        place = f'-{number:05}-of-{len(shards):05}' if len(shards) > 1 else ''
        files.append(path.with_name(f'{path.stem}-{digits}{place}{path.suffix}'))
        write_file(files[-1], shard)
    return files


def find_paths(checkpoint: Mapping[str, Any]) -> list[str]:
    """Find absolute paths that are left in the config of a published checkpoint, such as its ``data_root``.

    Args:
        checkpoint (Mapping): What :func:`strip_checkpoint` gives.

    Returns:
        list[str]: Each once, in order.
    """
    text = checkpoint['meta'].get('cfg') or ''
    texts = (node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant))
    return list(dict.fromkeys(t for t in texts if isinstance(t, str) and re.match(r'(~?/|~)\w|[A-Za-z]:[/\\]', t)))


def _find_classes(cfg: str) -> list[str]:
    """Find names of classes in the text of a config, which is not run; none if there are none."""
    for node in ast.walk(ast.parse(cfg)):
        if isinstance(node, ast.keyword) and node.arg == 'metainfo':
            for entry in ast.walk(node.value):
                if isinstance(entry, ast.keyword) and entry.arg == 'classes':
                    with suppress(ValueError):
                        names = ast.literal_eval(entry.value)
                        if isinstance(names, (list, tuple)):  # no file of names
                            return [str(name) for name in names]
    return []


def _as_pickle(checkpoint: Mapping[str, Any]) -> bytes:
    content = io.BytesIO()
    torch.save(checkpoint, content)
    return content.getvalue()


def _split(checkpoint: Mapping[str, Any], shard_size: float) -> list[dict[str, torch.Tensor]]:
    """Share the weights out among files, in their order."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for key, value in checkpoint['state_dict'].items():
        if shards[-1] and size + value.nbytes > shard_size:
            shards.append({})
            size = 0
        shards[-1][key] = value
        size += value.nbytes
    return shards


def _as_safetensors(weights: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> bytes:
    from safetensors.torch import save

    # It refuses tensors that share memory or have gaps.
    weights = {key: value.clone(memory_format=torch.contiguous_format) for key, value in weights.items()}
    # One entry: several come in a random order, on which the hash would depend.
    return save(weights, metadata=dict(meta=json.dumps(meta)))


def _round(name: str, value: torch.Tensor) -> torch.Tensor:
    """Round to half precision; integers stay."""
    rounded = value.half() if value.dtype == torch.float32 else value
    if rounded.is_floating_point() and not rounded.isfinite().all():
        raise UserError(f'{name} has values that half precision cannot hold (above 65504); publish without --half')
    return rounded


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
