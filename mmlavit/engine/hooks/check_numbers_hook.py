"""Stop a training whose numbers are not finite any more, before they reach the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, is_distributed
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.amp import GradScaler

from mmlavit.errors import ConfigError, UserError

from ..numbers import Diagnosis, diagnose, get_random_states, image_names, is_finite, set_random_states
from ..plain_model import find_plain_model

_SHOWN = 8
# The scaler doubles its scale every 2000 steps; without float16, nothing stops it before scaled gradients overflow.
# Their squares overflow long before, at a norm of 2^64.
_LARGEST_SCALE = 2.0**32


@HOOKS.register_module()
class CheckNumbersHook(Hook):
    """Stop, or skip the step, when the loss or a gradient is not finite, before the optimizer uses it.

    The message is one line: the iteration, what is not finite, the images of the batch (only the offending ones, where
    they can be told apart) and the first offending module. To find the module, the batch is run once more with the same
    random numbers and with hooks on all modules; as long as all is well that costs nothing.

    Where the forward pass ends with an error after such numbers, as the matching of DETR's relatives does, the error is
    replaced by that line, or the step is skipped. With several processes it stays as it is: to run the batch again, one
    would need the others.

    The check itself reads each gradient once after each backward pass, and waits for the device. mmengine waits in each
    iteration anyway, when it logs the loss; and its ``CheckInvalidLossHook``, which looks at every 50th loss after the
    step, finds weights that are damaged already. Several processes agree: all stop, or all skip.

    Under float16 AMP the loss scaler skips steps whose loss or gradients overflow; they are counted (``overflows`` in
    the log) and are no error, unless ``limit`` follow each other or running statistics are damaged. Under bfloat16,
    gradients are looked at until mmengine's loss scaler has reached 2^32, and are left to it from then on. With
    DeepSpeed and the like, whose wrappers have their own steps, only the loss is looked at.

    Results are the same bit by bit with and without this hook, as long as all numbers are finite.

    Example:
        >>> custom_hooks = [dict(type='CheckNumbersHook', action='skip')]

    Args:
        action (str): 'stop'; or 'skip': leave out the step, put back the running statistics, log a warning with the
            same message, count (``skipped_steps`` in the log) and go on.
        limit (int): Steps in a row that may be left out, by this hook or by the loss scaler, before that is an error.

    Raises:
        ConfigError: If an argument is out of its range.
    """

    priority = 'LOWEST'  # before_train_iter comes right before the step, when all other hooks have drawn

    def __init__(self, action: str = 'stop', limit: int = 50) -> None:
        if action not in ('stop', 'skip'):
            raise ConfigError(f"CheckNumbersHook: action must be 'stop' or 'skip', got {action!r}")
        if not isinstance(limit, int) or limit < 1:
            raise ConfigError(f'CheckNumbersHook: limit must be a positive integer, got {limit!r}')
        self.action = action
        self.limit = limit
        self._wrappers: list[OptimWrapper] = []
        self._undo: list[tuple[OptimWrapper, Callable, Callable]] = []
        self._own_step: Callable | None = None  # of the model's instance, such as a compiled one
        self._counts = dict(skipped_steps=0, overflows=0)
        self._in_a_row = 0
        self._spoilt = False
        self._batch: Any = None
        self._random_states: tuple | None = None
        self._buffers: list[Tensor] = []
        self._statistics: list[Tensor] = []

    def before_train(self, runner) -> None:
        """Step between the backward pass and the optimizer."""
        self._wrappers = list(_find_optim_wrappers(runner.optim_wrapper))
        for name in self._counts:  # of the training before it was resumed
            counted = runner.message_hub.log_scalars.get(f'train/{name}')
            self._counts[name] = int(counted.current()) if counted else 0
        buffers = runner.model.named_buffers()
        self._statistics = [value for name, value in buffers if name.endswith(('running_mean', 'running_var'))]
        for wrapper in self._wrappers:
            before = wrapper.backward, wrapper.step
            self._undo.append((wrapper, *before))
            wrapper.backward = partial(self._backward, runner, wrapper, before[0])
            wrapper.step = partial(self._step, runner, wrapper, before[1])
            wrapper.step._with_counter = True  # what the schedulers of the learning rate have put there is still called
        if self._wrappers:
            self._own_step = vars(runner.model).get('train_step')
            runner.model.train_step = partial(self._train_step, runner, runner.model.train_step)

    def after_train(self, runner) -> None:
        """Step back."""
        for wrapper, backward, step in self._undo:
            wrapper.backward, wrapper.step = backward, step
        if self._wrappers:
            del runner.model.train_step
            if self._own_step is not None:
                runner.model.train_step = self._own_step
        self._wrappers, self._undo = [], []
        for name, count in self._counts.items():
            if count:
                runner.logger.warning(f'CheckNumbersHook: {name} {count:,} after {runner.iter:,} iterations')

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Keep what is needed to run the iteration again."""
        self._batch = _keep(data_batch)
        self._random_states = get_random_states()
        if self.action == 'skip':
            self._buffers = [buffer.clone() for buffer in runner.model.buffers()]

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        """Look at the loss where that is all that can be seen."""
        self._batch = None
        if not self._wrappers and not is_finite(outputs):
            raise UserError(self._describe(runner, Diagnosis('the loss is not finite', '', image_names(data_batch))))

    def _train_step(self, runner, original: Callable, data: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        """Take a step; where its forward fails at numbers that are not finite, treat it as one with such a loss."""
        try:
            return original(data, optim_wrapper)
        except UserError:
            raise
        except Exception as error:
            if is_distributed() or is_model_wrapper(runner.model):
                raise
            wrapper = self._wrappers[0]
            try:
                found = self._diagnose_here(runner, wrapper)
            except Exception:
                raise error from None
            if not found.what:
                raise
            self._handle(runner, wrapper, 'skipped_steps', found)
            for wrapper in self._wrappers:
                self._leave_out(wrapper)
            return dict(loss=torch.tensor(float('nan')))  # as of any step that is left out

    def _leave_out(self, wrapper: OptimWrapper) -> None:
        """Go on as if there had been a backward pass, whose gradients are of no use."""
        wrapper._inner_count += 1
        wrapper.zero_grad()
        self._spoilt = True
        if wrapper.should_update():
            wrapper.step()

    @torch.compiler.disable
    def _backward(self, runner, wrapper: OptimWrapper, original: Callable, loss: Tensor, **kwargs) -> None:
        original(loss, **kwargs)
        scaler = _find_scaler(wrapper)
        if scaler is None:
            spoilt = _spoilt(wrapper, loss)
        elif getattr(wrapper, 'cast_dtype', None) is torch.bfloat16:  # which has the range of float32
            spoilt = _spoilt(wrapper, loss, gradients=scaler.get_scale() <= _LARGEST_SCALE)
        elif self._statistics:  # an overflow is the scaler's business, but running statistics would keep it
            spoilt = ~torch.stack(torch._foreach_norm(self._statistics)).isfinite().all()
        else:
            return
        if not _any_process(spoilt):
            return
        self._handle(runner, wrapper, 'skipped_steps')
        self._spoilt = True
        wrapper.zero_grad()

    @torch.compiler.disable
    def _step(self, runner, wrapper: OptimWrapper, original: Callable, **kwargs) -> None:
        if self._spoilt:
            self._spoilt = False
            return
        if _find_scaler(wrapper) is None:
            original(**kwargs)
            self._in_a_row = 0
            return
        stepped = []
        # A fused optimizer is always called, and leaves the step out itself where the scaler has found an overflow.
        handle = wrapper.optimizer.register_step_post_hook(
            lambda optimizer, *args: stepped.append(not getattr(optimizer, 'found_inf', None))
        )
        try:
            original(**kwargs)
        finally:
            handle.remove()
        if any(stepped):
            self._in_a_row = 0
        else:
            self._handle(runner, wrapper, 'overflows')

    def _handle(self, runner, wrapper: OptimWrapper, count: str, found: Diagnosis | None = None) -> None:
        """Count a step that is left out; raise a UserError if the training cannot go on."""
        if not self._spoilt:  # not once more for another batch of the same step
            self._counts[count] += 1
            self._in_a_row += 1
        runner.message_hub.update_scalar(f'train/{count}', self._counts[count])
        hopeless = self._in_a_row >= self.limit
        if count == 'overflows' and not hopeless:
            return
        line = self._describe(runner, found or self._diagnose(runner, wrapper))
        if hopeless:
            raise UserError(f'{line}; this is step {self._in_a_row} in a row that had to be left out')
        if self.action == 'stop':
            raise UserError(
                f'{line}; look at the images, lower the learning rate or clip gradients '
                f"(docs/faq.md of mmlavit), or leave such steps out: CheckNumbersHook with action='skip'"
            )
        for buffer, before in zip(runner.model.buffers(), self._buffers, strict=True):
            buffer.copy_(before)
        runner.logger.warning(f'{line}; this step is left out')

    def _diagnose(self, runner, wrapper: OptimWrapper) -> Diagnosis:
        """Run the batch again, in all processes; give what the first of them that found something has found."""
        found = self._diagnose_here(runner, wrapper)
        everywhere = all_gather_object(found)
        return next((one for one in everywhere if one.what), found)

    def _diagnose_here(self, runner, wrapper: OptimWrapper) -> Diagnosis:
        """Run the batch again."""
        model = find_plain_model(runner)
        if model is None:
            return Diagnosis('the loss or a gradient is not finite', '', image_names(self._batch))
        now = get_random_states()
        set_random_states(self._random_states)
        try:
            return diagnose(model, self._batch, wrapper)
        finally:
            set_random_states(now)
            model.zero_grad()

    def _describe(self, runner, found: Diagnosis) -> str:
        """Write the line."""
        what = found.what or 'the loss or a gradient is not finite, but both were when the batch was run again'
        where = f', first in {found.where}' if found.where else ''
        shown = ', '.join(found.images[:_SHOWN])
        if len(found.images) > _SHOWN:
            shown += f' and {len(found.images) - _SHOWN} more'
            runner.logger.warning(f'Images of iteration {runner.iter + 1}: {", ".join(found.images)}')
        return f'iteration {runner.iter + 1}: {what}{where}; images: {shown or "unknown"}'


def _find_optim_wrappers(wrapper: Any) -> Iterator[OptimWrapper]:
    """Yield the wrappers whose steps can be left out."""
    for one in wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]:
        if isinstance(one, OptimWrapper):
            yield one


def _find_scaler(wrapper: OptimWrapper) -> GradScaler | None:
    """Find the loss scaler that skips steps; None if there is none, or it is disabled."""
    scaler = getattr(wrapper, 'loss_scaler', None)
    return scaler if scaler is not None and scaler.is_enabled() else None


def _spoilt(wrapper: OptimWrapper, loss: Tensor, gradients: bool = True) -> Tensor:
    """Tell, as a tensor on their device, whether the loss or a gradient is not finite."""
    groups = wrapper.optimizer.param_groups if gradients else []
    grads = [weight.grad for group in groups for weight in group['params'] if weight.grad is not None]
    # One pass over the gradients. A norm is infinite also where a square is, which Adam would keep for good.
    norms = torch._foreach_norm(grads, 2) if grads else ()
    return ~torch.stack([loss.detach().reshape(()), *norms]).isfinite().all()


def _any_process(flag: Tensor | bool) -> bool:
    """Tell whether it is so in any process; in one process, whether it is so."""
    flag = torch.as_tensor(flag).float()
    all_reduce(flag, 'max')
    return bool(flag)


def _keep(batch: Any) -> Any:
    """Keep a batch as it is now: mmpretrain's Mixup and CutMix write what they mixed into its data samples."""
    if not isinstance(batch, Mapping) or not isinstance(batch.get('data_samples'), (list, tuple)):
        return batch
    samples = batch['data_samples']
    return {**batch, 'data_samples': [one.clone() if isinstance(one, BaseDataElement) else one for one in samples]}
