"""Memory of a training step: what is cheap to compute is computed again in the backward pass (ours).

The hidden map of a feed-forward exists three times in a training step: before and after the depthwise convolution, and
after GELU. The last is the input of a linear, which keeps it for the gradient of its weight. Attention weights are kept
twice, by softmax and by the product with values. Here only what they were computed from is kept: GELU and softmax cost
little, and their results are the same to the last bit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from .layout import is_plain_eager

_state = threading.local()


def recompute(function: Callable[[Tensor], Tensor], x: Tensor, use: Callable[[Tensor], Tensor]) -> Tensor:
    """Compute ``use(function(x))``, keeping x and not ``function(x)`` for the backward pass.

    Only in eager mode: compilers choose by themselves what to compute again. Not in a checkpointed block either, of
    which nothing is kept, nor where torch allows no hooks, as in ``torch.func.grad``.

    Args:
        function (Callable): Takes x. Its own backward may keep x or the result, and nothing else.
        x (Tensor): Any tensor; not to be changed in place until the backward pass is over.
        use (Callable): Takes the result. What it calls may be any modules, with hooks or wrapped.

    Returns:
        Tensor: What ``use`` gives.
    """
    if not _can_keep_back(x):
        return use(function(x))
    result = _Result(function, x)
    with saved_tensors_hooks(result.pack, result.unpack):
        y = function(x)
        result.remember(y)
        return use(y)


def _can_keep_back(x: Tensor) -> bool:
    return (
        torch.is_grad_enabled()
        and x.requires_grad
        and is_plain_eager()
        and not getattr(_state, 'off', False)
        and type(x) is Tensor  # others, such as those of torch.distributed, may have no memory of their own
        and not x.is_meta
        and torch._C._autograd._saved_tensors_hooks_is_enabled()
    )


def checkpoint_contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
    """Give the ``context_fn`` of ``torch.utils.checkpoint.checkpoint``: inside, :func:`recompute` keeps nothing back.

    It would hold on to x, which the checkpoint wants to forget.
    """
    return _Plainly(), _Plainly()


class _Plainly:
    """Where nothing is kept back. It is entered anew for each backward pass through a checkpoint."""

    def __init__(self) -> None:
        self.before: list[bool] = []

    def __enter__(self) -> None:
        self.before.append(getattr(_state, 'off', False))
        _state.off = True

    def __exit__(self, *_: object) -> None:
        _state.off = self.before.pop()


class _View(NamedTuple):
    """How a tensor that was not kept looks at the result."""

    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class _Result:
    """Stands for ``function(x)`` between forward and backward."""

    def __init__(self, function: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self.function = function
        self.x = x.detach()
        self.version = x._version
        device = x.device.type
        # The backward pass runs outside of autocast.
        self.autocast = dict(
            device_type=device, dtype=torch.get_autocast_dtype(device), enabled=torch.is_autocast_enabled(device)
        )
        self.storage: int | None = None  # of the result, once it is there
        self.result_version = 0
        self.uses = self.left = 0
        self.result: Tensor | None = None

    def remember(self, y: Tensor) -> None:
        """Note what the result is, to know it again."""
        self.storage, self.result_version = _storage(y), y._version

    def pack(self, t: Tensor) -> Tensor | _View:
        """Leave out the result, whatever looks at it, unless it was changed in place."""
        if type(t) not in (Tensor, nn.Parameter):  # a weight in pieces, or of a number type of its own
            return t
        storage = _storage(t)
        of_function = self.storage is None and storage != _storage(self.x)
        if not of_function and (storage != self.storage or t._version != self.result_version):
            return t
        self.uses += 1
        return _View(t.size(), t.stride(), t.storage_offset())

    def unpack(self, packed: Tensor | _View) -> Tensor:
        """Compute it again, once for all who ask."""
        if isinstance(packed, Tensor):
            return packed
        if self.result is None:
            if self.x._version != self.version:
                raise RuntimeError('a tensor that is needed for the backward pass was changed in place')
            with torch.no_grad(), torch.autocast(**self.autocast):
                self.result = self.function(self.x)
            self.left = self.uses
        view = self.result.as_strided(packed.size, packed.stride, packed.offset)
        self.left -= 1
        if not self.left:
            self.result = None
        return view


def _storage(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()
