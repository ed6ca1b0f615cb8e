"""Lets ``torch.load`` read the training checkpoints of mmengine."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

_STATISTICS = ('current', 'max', 'mean', 'min')


def allow_mmengine_checkpoints() -> None:
    """Register what mmengine's training checkpoints contain besides tensors as safe to load.

    Since torch 2.6 ``torch.load`` refuses objects it does not know. mmengine stores the history of
    the log (``HistoryBuffer``) and NumPy numbers, and its official releases do not tell torch, so
    testing and resuming refuse checkpoints that training just wrote. Nothing that could run code
    from a file is registered. Harmless if called twice, and on the maintained builds, which warn and
    load unsafely without it.
    """
    if _torch_version() < (2, 6):
        return  # loads everything by default, and cannot register an object under another name
    # NumPy 2 has renamed the module: files of either NumPy load.
    multiarray = getattr(np, '_core', None) or np.core
    arrays = [
        (getattr(multiarray.multiarray, name), f'numpy.{package}.multiarray.{name}')
        for name in ('_reconstruct', 'scalar')
        for package in ('_core', 'core')
    ]
    dtypes = [type(np.dtype(kind)) for kind in ('bool', 'i4', 'i8', 'f4', 'f8')]
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            (_get_statistic, 'builtins.getattr'),
            *arrays,
            np.ndarray,
            np.dtype,
            *dtypes,
        ]
    )


def _get_statistic(owner: Any, name: str) -> Any:
    """Stand in for ``getattr``, by which ``HistoryBuffer`` pickles its methods; only for those."""
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise ValueError(f'a checkpoint may not access {name!r} of {owner!r}')
    return getattr(owner, name)


def _torch_version() -> tuple[int, ...]:
    return tuple(int(number) for number in torch.__version__.split('.')[:2])
