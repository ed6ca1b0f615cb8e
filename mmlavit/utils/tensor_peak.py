"""What tensors take while a model runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


def peak_tensor_bytes(run: Callable[[], object]) -> int:
    """Measure the most memory that tensors take at a time which a call makes.

    The allocator is not asked, so that what it keeps for later does not count; nor does what an operator uses inside.

    Args:
        run (Callable): Takes no arguments; runs in inference mode of its own, if any.

    Returns:
        int: Bytes, on whatever device.
    """
    with _Meter() as meter:
        run()
    return meter.peak


class _Meter(TorchDispatchMode):
    """Follows the memory of the tensors that operators return, from the first to the last that uses it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operator and add what it returns, unless it was there before."""
        before = {_storage(x)._cdata for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in tree_iter(out):
            if isinstance(x, Tensor):
                self._add(_storage(x), before)
        return out

    def _add(self, storage: torch.UntypedStorage, before: set[int]) -> None:
        key = storage._cdata
        if key in before or key in self.known:
            return
        self.known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, storage.nbytes())

    def _remove(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def _storage(x: Tensor) -> torch.UntypedStorage:
    return x.untyped_storage()
