"""Ending a training that is asked to end, without losing what it has done."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from mmengine._strategy import DeepSpeedStrategy
from mmengine.dist import all_reduce, barrier, is_distributed, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmlavit.utils.local_files import write_file

from ..loops import ResumableLoop
from ..resume import INTERRUPTED, remove_interrupted

# Where a process leaves a file when it has stopped, so that its launcher knows; see ``engine/launch.py``.
STOPPED_FILE = 'MMLAVIT_STOPPED_FILE'

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A signal to a whole job reaches its processes directly and through their launcher, at about the same time.
_ONE_REQUEST_SECONDS = 2


class TrainingStopped(Exception):
    """The training has ended because a signal asked for it, and can be resumed."""


class StopHook(Hook):
    """End a training on SIGTERM or SIGINT, with a checkpoint from which it can be resumed.

    It ends after the current iteration, or in the middle of a validation, whichever of the processes got the signal.
    A validation that was stopped so, or that would have come next, is the first thing that the resumed training does.
    Where gradients are accumulated it ends after the next step of the optimizer, since a checkpoint has no gradients.
    A second signal, two seconds or more after the first, ends the process at once.

    Workers of data loaders ignore both signals, unless their own process sends them: a signal to a whole group of
    processes would end the workers first.
    """

    priority = 'LOWEST'  # after all that changes what is in a checkpoint

    def __init__(self) -> None:
        self._requests = _Requests()
        self._common_batches = 0
        self._probe: Tensor | None = None

    def before_train(self, runner) -> None:
        """Begin to listen."""
        for loop in filter(None, (runner.train_loop, runner.val_loop)):
            _shield_workers(loop.dataloader)
        self._requests.listen()
        if isinstance(runner.train_loop, ResumableLoop) and runner.train_loop.validation_due and runner.val_loop:
            runner.train_loop.validation_due = False
            runner.val_loop.run()

    def after_train(self, runner) -> None:
        """Stop listening; what an interruption has left is of no use any more."""
        self.close()
        if is_main_process():
            remove_interrupted(runner.work_dir, runner.message_hub.runtime_info.get('last_ckpt'))

    def close(self) -> None:
        """Give the signals back."""
        self._requests.forget()

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        """Stop, if a process was asked to."""
        number = self._agree()
        if number and _has_stepped(runner.optim_wrapper):
            loop, iterations = runner.train_loop, runner.iter + 1  # mmengine counts it after this
            due = isinstance(loop, ResumableLoop) and loop.validates_after(iterations)
            self._stop(runner, number, iterations, due)

    def before_val(self, runner) -> None:
        """Remember what is needed to stop within the validation."""
        # The last batches may be those of some processes only.
        batches = torch.tensor(len(runner.val_loop.dataloader))
        all_reduce(batches, 'min')
        self._common_batches = int(batches)
        self._probe = _probe(runner.model)

    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Stop, if a process was asked to."""
        if batch_idx >= self._common_batches:
            return
        number = self._agree()
        if number and _has_stepped(runner.optim_wrapper):
            for hook in runner.hooks:
                # It has put the averaged weights in the place of the others.
                if isinstance(hook, EMAHook) and not torch.equal(_probe(runner.model), self._probe):
                    hook._swap_ema_parameters()
            self._stop(runner, number, runner.iter, validation_due=True)

    def _agree(self) -> int:
        """Give the number of the signal that any process has received, or 0."""
        if not is_distributed():
            return self._requests.received
        number = torch.tensor(self._requests.received)
        all_reduce(number, 'max')
        return int(number)

    def _stop(self, runner, number: int, iterations: int, validation_due: bool) -> None:
        path = Path(runner.work_dir, INTERRUPTED)
        meta = dict(epoch=runner.epoch, iter=iterations, validation_due=validation_due)
        runner.save_checkpoint(runner.work_dir, path.name, meta=meta, by_epoch=False)
        if is_main_process():
            write_file(path.parent / 'last_checkpoint', str(path).encode())
        barrier()  # the first process that ends has its launcher end the others
        self._requests.ignore()
        if STOPPED_FILE in os.environ:
            Path(os.environ[STOPPED_FILE]).touch()
        runner.logger.warning(
            f'{signal.Signals(number).name}: stopped after iteration {iterations} and saved to {path}; --resume '
            + _say_where_it_resumes(runner)
        )
        runner.visualizer.close()
        raise TrainingStopped


def _say_where_it_resumes(runner) -> str:
    """Checkpoints of DeepSpeed have nothing of hooks, and so not the place in the data."""
    if not isinstance(runner.train_loop, ResumableLoop):
        return 'repeats the epoch'
    sharded = isinstance(getattr(runner, 'strategy', None), DeepSpeedStrategy)
    return 'begins the data of the epoch anew' if sharded else 'goes on from there'


class _Requests:
    """Remembers the signal that asks this process to end; a second one ends it."""

    def __init__(self) -> None:
        self.received = 0
        self._since = 0.0
        self._before: dict[int, Callable | int | None] = {}

    def listen(self) -> None:
        if threading.current_thread() is threading.main_thread():  # signals reach no other
            self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}

    def forget(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: not of Python, which cannot put it back
        self._before = {}

    def ignore(self) -> None:
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)
        self._before = {}

    def _receive(self, number: int, frame) -> None:
        if not self.received:
            self.received, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > _ONE_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def _shield_workers(loader: DataLoader) -> None:
    loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn)


def _start_worker(init: Callable[[int], None] | None, worker: int) -> None:
    """Have a worker end when its process says so, or has ended, and not when others do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Blocked, a signal waits for the thread, which learns who has sent it.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_obey_parent, daemon=True).start()
    if init is not None:
        init(worker)


def _obey_parent() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)


def _has_stepped(wrapper: OptimWrapper) -> bool:
    """Whether the iteration has ended with a step of the optimizer, so that no gradients are kept for later."""
    if isinstance(wrapper, OptimWrapperDict):
        return all(map(_has_stepped, wrapper.values()))
    return not isinstance(wrapper, OptimWrapper) or wrapper.should_update()


def _probe(model: nn.Module) -> Tensor:
    """One number of each parameter, to tell averaged weights from the others."""
    return torch.stack([p.detach().flatten()[0].float() for p in model.parameters() if p.numel()])
