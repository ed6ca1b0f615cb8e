"""Where in a training step numbers stopped being finite: asked afterwards, by running the batch once more."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn


class Diagnosis(NamedTuple):
    """What a second run of a batch has shown.

    Args:
        what (str): What is not finite, such as ``loss_cls is nan``; '' if all was finite this time.
        where (str): The first offending module and its class; '' if it is not known.
        images (list[str]): Files of the batch, only the offending ones where they can be told apart.
    """

    what: str
    where: str
    images: list[str]


def diagnose(model: nn.Module, batch: Any, optim_wrapper: Any) -> Diagnosis:
    """Run a training step once more, without its update, and find the first module that made a number not finite.

    Gradients and running statistics change; weights do not. The caller has set the random states of the first run.

    Args:
        model (nn.Module): A ``BaseModel``, not wrapped.
        batch (Any): What the data loader gave.
        optim_wrapper (OptimWrapper): Whose context (such as autocast) and loss scale are used.

    Returns:
        Diagnosis: What and where.

    Raises:
        Exception: What the forward raises, unless numbers were not finite before.
    """
    images = image_names(batch)
    for name, weight in model.named_parameters():
        if not is_finite(weight):
            return Diagnosis('a weight is not finite', f'{name}, before this step', images)
    model.zero_grad()
    watch = _Watch(model, len(images))
    rehearsal = _Rehearsal(optim_wrapper)
    with watch.attached():
        try:
            # Not that of the instance, which the hook may have put there.
            terms = type(model).train_step(model, batch, optim_wrapper=rehearsal)
        except Exception as error:  # such as that of the matching in DETR
            if not watch.forward:
                raise
            what = f'the loss cannot be computed ({type(error).__name__}: {error}), since outputs are not finite'
            return Diagnosis(what, watch.forward, [images[i] for i in watch.rows] or images)
    bad = [name for name, value in terms.items() if 'loss' in name and not is_finite(value)]
    if bad:
        bad = [name for name in bad if name != 'loss'] or bad  # of a sum and its terms, the terms
        what = ', '.join(f'{name} is {terms[name].item():g}' for name in bad)
        return Diagnosis(what, watch.forward, [images[i] for i in watch.rows] or images)
    grads = {name for name, weight in model.named_parameters() if not is_finite([weight.grad])}
    if not grads:
        norms = {name: weight.grad.norm() for name, weight in model.named_parameters() if weight.grad is not None}
        huge = [name for name, norm in norms.items() if not is_finite(norm)]
        what = f'squares of {len(huge)} gradients are not finite (of {huge[0]})' if huge else ''
        return Diagnosis(what, '', images)
    what = f'the loss is {rehearsal.loss.item():.4g}, but {len(grads)} gradients are not finite'
    return Diagnosis(what, watch.find_backward(grads), images)


def is_finite(value: Any) -> bool:
    """Tell whether all floating-point numbers in tensors, lists, tuples and dicts are finite."""
    return all(bool(tensor.isfinite().all()) for tensor in _tensors(value))


def image_names(batch: Any) -> list[str]:
    """List the files of a batch of mmdet, mmseg or mmpretrain, in its order.

    Args:
        batch (Any): What a data loader gave: data samples anywhere in dicts, lists and tuples.

    Returns:
        list[str]: ``img_path`` of each data sample, or what else tells it apart.
    """
    if isinstance(batch, BaseDataElement):
        for key in ('img_path', 'img_id', 'sample_idx'):
            if batch.get(key) is not None:
                return [str(batch.get(key))]
        return ['?']
    if isinstance(batch, Mapping):
        return [name for value in batch.values() for name in image_names(value)]
    if isinstance(batch, (list, tuple)):
        return [name for value in batch for name in image_names(value)]
    return []


def get_random_states() -> tuple:
    """Give the states of all generators that a training step draws from; takes microseconds."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def set_random_states(states: tuple) -> None:
    """Go back to states that :func:`get_random_states` gave."""
    python, numpy, cpu, cuda = states
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda)


class _Rehearsal:
    """Stands for an optimizer wrapper, and goes no further than the backward pass."""

    def __init__(self, optim_wrapper: Any) -> None:
        self.optim_context = optim_wrapper.optim_context
        self.scaler = getattr(optim_wrapper, 'loss_scaler', None)
        self.loss: Tensor | None = None

    def update_params(self, loss: Tensor) -> None:
        """Compute gradients."""
        self.loss = loss.detach()
        (self.scaler.scale(loss) if self.scaler else loss).backward()


class _Call:
    """A call of a module: what is known of the gradients that came to its outputs."""

    def __init__(self, name: str, module: nn.Module, fed: bool) -> None:
        self.name = name
        self.module = module
        self.fed = fed  # whether its inputs were finite
        self.got: bool | None = None  # None: no gradient yet; else whether all were finite

    def __str__(self) -> str:
        return f'{self.name or "the model"} ({type(self.module).__name__})'


class _Watch:
    """Looks at what all modules of a model take and give, forwards and backwards.

    Forwards, the first module to end with numbers that are not finite is the offender; if it has got them already, the
    code of the module around it is. Backwards, it is the first module whose outputs got finite gradients and whose
    inputs did not. Each call looks at views of its inputs, so that gradients of other users are not counted as its own.
    """

    def __init__(self, model: nn.Module, batch_size: int) -> None:
        self.model = model
        self.batch_size = batch_size
        self.forward = ''
        self.rows: list[int] = []
        self._calls: list[_Call] = []
        self._active: list[_Call] = []
        self._offender: _Call | None = None
        self._first_reached: _Call | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Watch what is run inside."""
        handles = []
        for name, module in self.model.named_modules():
            handles.append(module.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def find_backward(self, grads: set[str]) -> str:
        """Name the first offender of the backward pass, given the parameters whose gradients are not finite."""
        if self._offender is not None:
            return str(self._offender)
        for call in reversed(self._calls):  # one whose inputs need no gradient, or stay finite
            own = {f'{call.name}.{name}' for name, _ in call.module.named_parameters(recurse=False)}
            if call.got and own & grads:
                return str(call)
        return f'code behind {self._first_reached}' if self._first_reached is not None else ''

    def _enter(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        call = _Call(name, module, is_finite((args, kwargs)))
        self._calls.append(call)
        self._active.append(call)
        views: dict[int, Tensor] = {}

        def look(tensor: Tensor) -> Tensor:
            if not tensor.requires_grad or tensor.is_leaf:
                return tensor
            if id(tensor) not in views:  # the same tensor twice stays the same tensor twice
                views[id(tensor)] = tensor.view_as(tensor)
                views[id(tensor)].register_hook(partial(self._see_input, call))
            return views[id(tensor)]

        return _map_tensors(look, args), _map_tensors(look, kwargs)

    def _leave(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        call = self._active.pop()
        while call.module is not module:  # calls inside that ended early
            call = self._active.pop()
        if not self.forward and not is_finite(output):
            fed = next((c for c in [call, *reversed(self._active)] if c.fed), None)
            self.forward = str(fed) if fed else 'the images themselves'
            self.rows = _bad_rows(output, self.batch_size)
        for tensor in _tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(partial(self._see_output, call))

    def _see_output(self, call: _Call, grad: Tensor) -> None:
        finite = is_finite(grad)
        call.got = finite and call.got is not False
        if not finite and self._first_reached is None:
            self._first_reached = call

    def _see_input(self, call: _Call, grad: Tensor) -> None:
        if self._offender is None and call.got and not is_finite(grad):
            self._offender = call


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in a nested value."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Put ``function`` of each floating-point tensor into its place in a nested value."""
    if isinstance(value, Tensor):
        return function(value) if value.is_floating_point() else value
    if type(value) is dict:
        return {key: _map_tensors(function, item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_map_tensors(function, item) for item in value)
    if isinstance(value, tuple) and hasattr(value, '_fields'):  # a NamedTuple
        return type(value)(*(_map_tensors(function, item) for item in value))
    return value


def _bad_rows(output: Any, batch_size: int) -> list[int]:
    """Tell in which images of a batch numbers are not finite; none where that cannot be told."""
    for tensor in _tensors(output):
        if tensor.dim() >= 3 and tensor.shape[0] == batch_size:
            finite = tensor.detach().flatten(1).isfinite().all(dim=1)
            if not finite.all():
                return [i for i, ok in enumerate(finite.tolist()) if not ok]
    return []
