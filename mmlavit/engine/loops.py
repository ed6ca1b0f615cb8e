"""mmengine's training loops, except that they can be resumed anywhere.

mmengine repeats the whole epoch in which a training was interrupted, and then trains for more iterations than planned.
Where it counts iterations, it loads all images again that were seen; its maintained builds do so for all samplers but
``InfiniteSampler``. Random numbers begin from the seed again. An uninterrupted training is the same with these loops,
unless ``exact_resume`` is on.
"""

from __future__ import annotations

import itertools
from bisect import bisect
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from mmlavit.errors import ConfigError

from .loader import ResumableLoader, seed_iteration

NO_BATCH = (
    'the training data give no batch: there are fewer images for each process than a batch has, and drop_last leaves '
    'those out; set a smaller train_dataloader.batch_size, or look at what the dataset has filtered out'
)
NO_END = (
    'an epoch of {} has no end; set train_dataloader.sampler.type=DefaultSampler, or count iterations: '
    'train_cfg=dict(_delete_=True, by_epoch=False, max_iters=..., val_interval=...)'
)
# By name: the last two are mmdet's, which may not be installed.
ENDLESS_SAMPLERS = ('InfiniteSampler', 'MultiSourceSampler', 'GroupMultiSourceSampler')


class ResumableLoop:
    """What both loops have in common.

    Attributes:
        seen (int): Batches of the current epoch that were trained before the training was resumed. A loop that counts
            iterations has one epoch, the whole training.
        validation_due (bool): Whether the training ended in a validation, or before one that should have come.
    """

    dataloader: ResumableLoader
    seen = 0
    validation_due = False
    _first_iter = 0  # of the current epoch

    def count_batches(self, epoch: int, iteration: int) -> int:
        """Count the batches of an epoch that a checkpoint has seen.

        Args:
            epoch (int): The checkpoint's epoch.
            iteration (int): The checkpoint's iteration.

        Returns:
            int: 0 at the border of two epochs.
        """
        return 0 if epoch > self._epoch else iteration - self._first_iter

    def validates_after(self, iteration: int) -> bool:
        """Tell whether a validation comes right after an iteration, and not after the rest of an epoch.

        Args:
            iteration (int): Number of the iteration, from 1.
        """
        return False

    def validation_follows(self, epoch: int, iteration: int) -> bool:
        """Tell whether a checkpoint that is being saved comes right before a validation.

        Args:
            epoch (int): The checkpoint's epoch, which is already the next one at an epoch's end.
            iteration (int): The checkpoint's iteration, likewise.
        """
        raise NotImplementedError

    def run_iter(self, *args) -> None:
        """Train one iteration; the arguments are those of mmengine's loop."""
        if self.dataloader.seed is not None:
            seed_iteration(self.dataloader.seed, self._iter, self.dataloader.rank)
        super().run_iter(*args)

    def find_place(self) -> None:
        """Find out at which iteration the current epoch began, for checkpoints."""
        self._first_iter = self._iter - self.seen

    def _validates_at(self, number: int, last: int) -> bool:
        """Decide as mmengine does, which it has not yet done for this epoch or iteration."""
        if self.runner.val_loop is None or number < self.val_begin:
            return False
        interval = self.dynamic_intervals[bisect(self.dynamic_milestones, number + 1) - 1]
        return number == last or number % interval == 0

    def _start(self) -> None:
        """Begin with the batches that were not seen."""
        self.dataloader.start(self._epoch, self.seen)
        self.find_place()


class EpochLoop(ResumableLoop, EpochBasedTrainLoop):
    """mmengine's loop that counts epochs. Takes its arguments."""

    def run_epoch(self) -> None:
        """Train what is left of an epoch."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        self._start()
        for number, batch in enumerate(self.dataloader, self.seen):
            self.run_iter(number, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1
        self._first_iter = self._iter
        self.seen = 0

    def validation_follows(self, epoch: int, iteration: int) -> bool:
        """Tell whether a checkpoint comes right before a validation; see the base class."""
        return epoch > self._epoch and self._validates_at(epoch, self._max_epochs)


class IterLoop(ResumableLoop, IterBasedTrainLoop):
    """mmengine's loop that counts iterations. Takes its arguments."""

    def run(self) -> None:
        """Train what is left."""
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        self._start()
        batches = self._draw_batches()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(batches))
            self._decide_current_val_interval()
            if self.validates_after(self._iter):
                self.runner.val_loop.run()
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def validates_after(self, iteration: int) -> bool:
        """Tell whether a validation comes right after an iteration; see the base class."""
        return self._validates_at(iteration, self._max_iters)

    def validation_follows(self, epoch: int, iteration: int) -> bool:
        """Tell whether a checkpoint comes right before a validation; see the base class."""
        return iteration > self._iter and self.validates_after(iteration)

    def _draw_batches(self) -> Iterator[Any]:
        """Yield batches without an end, also of a sampler that has one."""
        for number in itertools.count():
            sampler = self.dataloader.batch_sampler.sampler
            if hasattr(sampler, 'set_epoch'):
                sampler.set_epoch(number)
            before = self.dataloader.batch_sampler.number
            yield from self.dataloader
            # Not whether one was yielded: a resumed training may have seen all of the first passes.
            if self.dataloader.batch_sampler.number == before:
                raise ConfigError(NO_BATCH)


_LOOPS = {EpochBasedTrainLoop: EpochLoop, IterBasedTrainLoop: IterLoop}


def find_loop(cfg: Mapping[str, Any]) -> type[ResumableLoop] | None:
    """Find the loop here that does what a ``train_cfg`` asks of mmengine's.

    Args:
        cfg (Mapping): With 'by_epoch' or 'type'.

    Returns:
        type[ResumableLoop], optional: None where it asks for another loop, or cannot be understood.
    """
    if ('type' in cfg) == ('by_epoch' in cfg):
        return None
    if 'by_epoch' in cfg:
        return EpochLoop if cfg['by_epoch'] else IterLoop
    kind = LOOPS.get(cfg['type']) if isinstance(cfg['type'], str) else cfg['type']
    return _LOOPS.get(kind)
