"""Where in an epoch a training was."""

from __future__ import annotations

from mmengine.hooks import Hook

from ..loops import IterLoop, ResumableLoop
from .total_batch_hook import images_per_iteration


class PositionHook(Hook):
    """Write into checkpoints how much of the epoch was trained, and let a resumed training go on from there.

    With another number of images per iteration, it goes on after as many images, to within an iteration.
    """

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Write it down."""
        loop, meta = runner.train_loop, checkpoint['meta']
        if isinstance(loop, ResumableLoop):
            meta['batches_of_epoch'] = loop.count_batches(meta['epoch'], meta['iter'])

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Tell the loop."""
        loop = runner.train_loop
        if not runner._resume or not isinstance(loop, ResumableLoop):
            return
        meta = checkpoint['meta']
        # Without the entry, in a file of another script, this is what mmengine assumes.
        seen = meta.get('batches_of_epoch', meta['iter'] if isinstance(loop, IterLoop) else 0)
        now = images_per_iteration(runner)
        loop.seen = seen if now is None else seen * meta.get('images_per_iteration', now) // now
