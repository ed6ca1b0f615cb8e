"""Checkpoint files: read without running code that may be in them.

A ``.pth`` file is a pickle, and reading a pickle may call any function. torch can read tensors and plain values alone
(``weights_only``), but mmengine does not insist on that: its maintained builds read a refused file a second time
without it, and allow ``getattr``, from which a file can build anything; and both stacks read what they download without
it. So ``import mmlavit`` registers loaders of its own for all files and addresses that mmengine knows.
"""

from __future__ import annotations

import codecs
import difflib
import hashlib
import json
import logging
import os
import os.path as osp
import pickle
import re
import sys
import tarfile
import uuid
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import barrier, is_main_process
from mmengine.fileio import get_file_backend
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint

from mmlavit.errors import UserError

from .config_types import type_name
from .local_files import expand_home

# torch's own switches. The first is what --trust-checkpoint sets, so that it reaches every process of a run.
_TRUST = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
_REFUSE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
_YES = ('1', 'y', 'yes', 'true')

# Eight digits at least: torch's own expression finds one in segformer-b0.pth, too.
_HASH = re.compile(r'-[0-9a-f]{8,}(-\d{5}-of-\d{5})?\.')
_SHARD = re.compile(r'-(?P<number>\d{5})-of-(?P<count>\d{5})$')  # at the end of a stem
_STATISTICS = ('current', 'max', 'mean', 'min')
_DTYPES = ('?', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8', 'U')


def trust_checkpoints() -> None:
    """Let this process, and those it starts, read checkpoints that may run code.

    Raises:
        UserError: If the environment forbids it.
    """
    if os.environ.get(_REFUSE) in _YES:
        raise UserError(f'checkpoints cannot be trusted while {_REFUSE} is set; unset it')
    os.environ[_TRUST] = '1'


def register_loaders() -> None:
    """Have mmengine read all checkpoints through this module. Harmless if called twice."""
    _allow_mmengine_types()  # for a torch.load of the user's own
    loaders = {
        load_from_local: '',
        load_from_http: ('http://', 'https://'),
        load_from_ceph: (r'(\S+\:)?s3://', r'(\S+\:)?petrel://'),
        load_from_zoo: ('mmcls://', 'modelzoo://', 'open-mmlab://', 'openmmlab://', 'torchvision://'),
        load_from_pavi: 'pavi://',
        load_from_mmlavit: 'mmlavit://',
    }
    for loader, prefixes in loaders.items():
        CheckpointLoader.register_scheme(prefixes, loader, force=True)


def load_from_local(path: str, map_location: Any = None) -> Any:
    """Read a file of ``torch.save`` or safetensors, without running code that may be in it.

    Args:
        path (str): The file.
        map_location (Any): As for ``torch.load``. Weights of a safetensors file stay on the CPU.

    Returns:
        Any: What the file has; of a safetensors file ``dict(meta=..., state_dict=...)``.

    Raises:
        UserError: If there is no such file, it is damaged, or it could run code and checkpoints are not trusted.
    """
    path = osp.expanduser(path)
    require_checkpoint(path)
    for shard in find_shards(path):
        if not shard.is_file():
            raise UserError(f'{path} is one of several files, but {shard} does not exist; put them into one folder')
    try:
        checkpoint = _read_safetensors(path) if _is_safetensors(path) else _read_pickle(path, map_location)
    except Exception as error:  # a damaged file can end in any
        refused = _find_refused(path, error)
        if refused is None:
            raise UserError(
                f'{path} cannot be read as a checkpoint ({_first_line(error)}); expected a whole file as torch.save or '
                'safetensors write it'
            ) from error
        if not _are_trusted():
            raise UserError(
                f'{path} was not loaded: it asks for {refused}, which could run code; if you trust its source, add '
                f'--trust-checkpoint (to a script without this option: {_TRUST}=1 in its environment)'
            ) from error
        print_log(f'{path} asks for {refused}; loaded, since checkpoints are trusted', 'current', logging.WARNING)
        return torch.load(path, map_location=map_location, weights_only=False)
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get('meta'), dict) and not _are_trusted():
        # The text of a config. Where a training is resumed, mmengine runs it as the program that a config is. Nothing
        # has written it since mmcv 1.
        checkpoint['meta'].pop('config', None)
    return checkpoint


def load_from_http(address: str, map_location: Any = None) -> Any:
    """Read a file of the internet, which is kept where ``torch.hub`` keeps such files."""
    if is_main_process():
        _download(address)
    barrier()
    return load_from_local(_download(address), map_location)  # other machines do not have it yet


def load_from_ceph(address: str, map_location: Any = None) -> Any:
    """Read a file of a Ceph storage."""
    if len(find_shards(address)) > 1:
        raise UserError(f'{address} is a checkpoint in several files, which is read from a local disk or by https only')
    backend = get_file_backend(address, backend_args=dict(backend='petrel'))
    with backend.get_local_path(address) as path:
        return load_from_local(str(path), map_location)


def load_from_zoo(address: str, map_location: Any = None) -> Any:
    """Read a file that mmengine has a short name for, such as ``torchvision://resnet50``."""
    scheme, _, name = address.partition('://')
    if scheme in ('torchvision', 'modelzoo'):
        known = mmengine_checkpoint.get_torchvision_models()
    elif scheme == 'mmcls':
        known = mmengine_checkpoint.get_mmcls_models()
    else:
        known = mmengine_checkpoint.get_external_models()
        name = mmengine_checkpoint.get_deprecated_model_names().get(name, name)
    if name not in known:
        raise UserError(f'{address} is not among the checkpoints that mmengine knows; name a file or its address')
    if not known[name].startswith('http'):  # the user's own list may name files
        return load_from_local(osp.join(mmengine_checkpoint._get_mmengine_home(), known[name]), map_location)
    checkpoint = load_from_http(known[name], map_location)
    return mmengine_checkpoint._process_mmcls_checkpoint(checkpoint) if scheme == 'mmcls' else checkpoint


def load_from_pavi(address: str, map_location: Any = None) -> Any:
    """Refuse an address of OpenMMLab's former platform, whose client was never published."""
    raise UserError(f'{address} cannot be read; download the file and name it')


def load_from_mmlavit(address: str, map_location: Any = None) -> Any:
    """Read weights that come with this package, such as ``mmlavit://lavit_nano_in275``."""
    return load_from_local(str(find_weights(address.removeprefix('mmlavit://'))), map_location)


def find_weights(name: str) -> Path:
    """Find weights that come with this package, in ``weights/`` of the repository.

    Args:
        name (str): Such as ``lavit_nano_in275``, without the hash and the suffix of the file.

    Returns:
        Path: The file; of several shards, the first.

    Raises:
        UserError: If there are none of this name.
    """
    known = _published()
    if name not in known:
        raise UserError(f'mmlavit://{name} is unknown; there is {", ".join(sorted(known)) or "none"}')
    return known[name]


def _published() -> dict[str, Path]:
    """List the weights that come with this package by their names."""
    package = Path(__file__).resolve().parents[1]
    files = [*(package.parent / 'weights').glob('*.safetensors'), *(package / '.mim/weights').glob('*.safetensors')]
    return {_SHARD.sub('', file.stem).rpartition('-')[0]: find_shards(file)[0] for file in files}


def find_shards(path: str | os.PathLike) -> list[Path]:
    """Find all files of a checkpoint that is in several, as Hugging Face's tools name them.

    Args:
        path (str or Path): A file, such as any of ``a-00001-of-00003.safetensors`` to ``a-00003-of-00003.safetensors``.

    Returns:
        list[Path]: The files, whether they exist or not; of a checkpoint in one file, this one.
    """
    path = Path(path)
    shard = _SHARD.search(path.stem)
    if shard is None or path.suffix != '.safetensors' or not 0 < int(shard['number']) <= int(shard['count']):
        return [path]
    count = shard['count']
    return [path.with_stem(_SHARD.sub(f'-{i:05}-of-{count}', path.stem)) for i in range(1, int(count) + 1)]


def find_checkpoint(path: str | os.PathLike) -> Path:
    """Find the file of a checkpoint on this machine; one of the internet is fetched if it was not before.

    Args:
        path (str or Path): File, ``mmlavit://NAME``, or address of the internet.

    Returns:
        Path: The file.

    Raises:
        UserError: If it does not exist, or the address is of another kind.
    """
    path = os.fspath(path)
    require_checkpoint(path)
    if path.startswith('mmlavit://'):
        return find_weights(path.removeprefix('mmlavit://'))
    if path.startswith(('http://', 'https://')):
        return Path(_download(path))
    if _is_address(path):
        raise UserError(f'{path} has no file on this machine; expected a file, mmlavit://NAME or https://...')
    return expand_home(path)


def require_checkpoint(path: str, what: str = 'checkpoint') -> None:
    """Make sure that a checkpoint file exists. Addresses of the internet are left alone.

    Args:
        path (str): File or address.
        what (str): How the message calls it.

    Raises:
        UserError: If it is a file and does not exist, or is a folder.
    """
    if path.startswith('mmlavit://'):
        find_weights(path.removeprefix('mmlavit://'))
    if osp.isdir(osp.expanduser(path)):
        raise UserError(f'{what} {path} is a folder; expected a .pth or .safetensors file, such as one in it')
    if not _is_address(path) and not osp.isfile(osp.expanduser(path)):
        raise UserError(f'{what} {path} does not exist; {_suggest(Path(path))}')


def _suggest(path: Path) -> str:
    """Say what may have been meant by a file that does not exist."""
    if path.stem in _published():
        return f'did you mean mmlavit://{path.stem}?'
    there = [file.name for file in path.parent.glob('*') if file.suffix in ('.pth', '.safetensors')]
    if alike := difflib.get_close_matches(path.name, there, 1):
        return f'did you mean {path.parent / alike[0]}?'
    return 'expected a .pth or .safetensors file' + ('' if path.is_absolute() else ', relative to the current folder')


def _is_address(path: str) -> bool:
    # Two letters at least, so that no drive letter counts as the scheme of an address. Folders may have a colon, too.
    return not osp.isfile(path) and re.match(r'([\w-]+:)?[\w-]{2,}:/', path) is not None


def require_checkpoints(cfg: Config) -> None:
    """Make sure that the weights a config starts from exist.

    Args:
        cfg (Config): The config, with ``load_from`` and any ``init_cfg`` of type ``Pretrained``.

    Raises:
        UserError: If a file is missing, or a training is to be resumed from a file of weights.
    """
    if cfg.get('load_from'):
        require_checkpoint(cfg.load_from)
        if cfg.get('resume') and osp.isfile(cfg.load_from) and _is_safetensors(cfg.load_from):
            raise has_weights_only(cfg.load_from)
        return
    for path in _pretrained(cfg.model):
        require_checkpoint(path, 'init_cfg.checkpoint')


def has_weights_only(path: str) -> UserError:
    """Make the error for a training that is to be resumed from a file of weights."""
    return UserError(
        f'{path} has weights only, so no training can be resumed from it; start a new one from its '
        f'weights with --cfg-options load_from={path}'
    )


def _pretrained(node: Any) -> Iterator[str]:
    """Yield the checkpoints of every ``init_cfg=dict(type='Pretrained', ...)`` below ``node``."""
    if isinstance(node, Mapping):
        if type_name(node) in ('Pretrained', 'PretrainedInit') and isinstance(node.get('checkpoint'), str):
            yield node['checkpoint']
        for value in node.values():
            yield from _pretrained(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _pretrained(value)


def load_checkpoint(path: str) -> dict[str, Any]:
    """Read a checkpoint with weights.

    Args:
        path (str): A training checkpoint or a file of weights, ``mmlavit://NAME``, or an address of the internet.

    Returns:
        dict[str, Any]: With the weights under 'state_dict', without the ``module.`` of a wrapper.

    Raises:
        UserError: As :func:`find_checkpoint` and :func:`load_from_local`, and if there are no weights.
    """
    checkpoint = load_from_local(str(find_checkpoint(path)), 'cpu')
    weights = None
    if isinstance(checkpoint, Mapping):
        inner = checkpoint.get('model')  # where the scripts of DeiT and PVT save them
        weights = checkpoint.get('state_dict', inner if isinstance(inner, Mapping) else checkpoint)
    if not isinstance(weights, Mapping) or not weights or not all(map(torch.is_tensor, weights.values())):
        raise UserError(f'{path} has no weights; expected a checkpoint with a state_dict')
    if all(name.startswith('module.') for name in weights):  # saved by nn.DataParallel and its like
        weights = {name.removeprefix('module.'): weight for name, weight in weights.items()}
    return {**checkpoint, 'state_dict': weights} if 'state_dict' in checkpoint else dict(state_dict=weights)


def _are_trusted() -> bool:
    return os.environ.get(_TRUST) in _YES


def _read_pickle(path: str, map_location: Any) -> Any:
    """Read a file of ``torch.save``, if it has nothing but tensors, plain values and what mmengine's own have."""
    if tarfile.is_tarfile(path):
        raise pickle.UnpicklingError('before torch 2.6, weights_only does not hold for these')
    _allow_mmengine_types()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # about what is then refused
        return torch.load(path, map_location=map_location, weights_only=True)


def _find_refused(path: str, error: Exception) -> str | None:
    """Say what a file has that may run code; None if it is rather damaged."""
    found = re.search(r'GLOBAL ([\w.]+)', str(error))
    if found:
        return found[1]
    if not isinstance(error, pickle.UnpicklingError):
        return None
    with open(path, 'rb') as file:
        is_pickle = file.read(1) == pickle.PROTO
    return (
        'something that torch cannot check'
        if is_pickle or zipfile.is_zipfile(path) or tarfile.is_tarfile(path)
        else None
    )


def _is_safetensors(path: str) -> bool:
    """Tell whether a file is one of safetensors, by its content: the length of a JSON header, and the header."""
    with open(osp.expanduser(path), 'rb') as file:
        return file.read(9)[8:] == b'{'


def _read_safetensors(path: str) -> dict[str, Any]:
    """Read weights, and the meta that :func:`save_published` wrote beside them, if any."""
    from safetensors import safe_open

    weights, meta = {}, {}
    for shard in find_shards(path):
        with safe_open(shard, framework='pt') as file:
            weights.update((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118  not a dict
            metadata = file.metadata() or {}
    with suppress(KeyError, ValueError):
        meta = json.loads(metadata['meta'])
    return dict(meta=meta if isinstance(meta, dict) else {}, state_dict=weights)


def _first_line(error: Exception) -> str:
    """Give the first line of an error, at most 200 characters that can be printed."""
    if isinstance(error, pickle.UnpicklingError):
        return 'another format'
    text = ''.join(filter(str.isprintable, f'{error}'.partition('\n')[0]))
    return f'{type(error).__name__}: {text}'[:200]


def _download(address: str) -> str:
    """Download a file, with the other shards of a checkpoint, unless they are there; give its path."""
    name = osp.basename(urlparse(address).path)
    before, _, after = address.rpartition(name)
    shards = [f'{before}{shard.name}{after}' for shard in find_shards(name)]
    # Many addresses end in model.safetensors or the like; only a name with a hash stands for one file.
    place = '' if _HASH.search(name) else hashlib.sha256(shards[0].encode()).hexdigest()[:8]
    folder = osp.join(torch.hub.get_dir(), 'checkpoints', place)
    for shard in shards:
        _download_to(osp.join(folder, osp.basename(urlparse(shard).path)), shard)
    return osp.join(folder, name)


def _download_to(path: str, address: str) -> None:
    """Download one file unless it is there."""
    if not osp.exists(path):
        os.makedirs(osp.dirname(path), exist_ok=True)
        part = f'{path}.{uuid.uuid4().hex}.part'  # several processes may fetch it
        try:
            torch.hub.download_url_to_file(address, part, progress=sys.stderr.isatty())
        except OSError as error:
            raise UserError(f'{address} cannot be downloaded ({_first_line(error)})') from error
        # A connection that drops is no error to torch, and what has come would be taken for the file from now on.
        if fault := _find_damage(part):
            os.remove(part)
            raise UserError(f'{address} gave a file that cannot be read as a checkpoint ({fault}); try again')
        os.replace(part, path)


def _find_damage(path: str) -> str:
    """Say what keeps a file from being read, other than what it could run; '' if nothing does."""
    try:
        _read_safetensors(path) if _is_safetensors(path) else _read_pickle(path, 'cpu')
    except Exception as error:  # a damaged file can end in any
        return '' if _find_refused(path, error) else _first_line(error)
    return ''


def _allow_mmengine_types() -> None:
    """Tell torch which types mmengine's checkpoints have besides tensors; no code of a file gets at more by them.

    Before each file, because the maintained mmengine forbids some of them again whenever it loads one itself.
    """
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([kind for kind in _ALLOWED if kind not in allowed])


def _get_statistic(owner: Any, name: str) -> Any:
    """Stand in for ``getattr``, by which ``HistoryBuffer`` pickles its methods; only for those."""
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise pickle.UnpicklingError(f'GLOBAL getattr may not give {name!r} of {owner!r}')
    return getattr(owner, name)


def _named(function: Callable, name: str) -> Callable:
    """Wrap a function so that torch takes it for the one of that name."""

    def call(*args):
        return function(*args)

    call.__module__, _, call.__name__ = name.rpartition('.')
    call.__qualname__ = call.__name__
    return call


_ALLOWED = (
    HistoryBuffer,
    ConfigDict,
    _named(_get_statistic, 'builtins.getattr'),
    bytes,
    codecs.encode,
    slice,
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in _DTYPES),
    # The functions by which NumPy makes arrays and numbers. NumPy 2 has renamed the module; files of either load.
    *(
        _named(example.__reduce__()[0], f'numpy.{core}.multiarray.{name}')
        for name, example in (('_reconstruct', np.empty(0)), ('scalar', np.float64()))
        for core in ('_core', 'core')
    ),
)
