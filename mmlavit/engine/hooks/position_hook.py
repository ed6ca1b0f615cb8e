"""Where in an epoch a training was, and whether its validation is due."""

from __future__ import annotations

import torch
from mmengine.dist import all_reduce, broadcast, is_distributed, is_main_process
from mmengine.hooks import Hook

from mmlavit.errors import UserError

from ..loops import IterLoop, ResumableLoop
from ..resume import forget_validation, note_validation, was_validated
from .total_batch_hook import images_per_iteration


class PositionHook(Hook):
    """Write into checkpoints how much of the epoch was trained, and let a resumed training go on from there.

    With another number of images per iteration, it goes on after as many images, to within an iteration. The order of
    images is that of the checkpoint's seed, which mmengine goes on with.

    A checkpoint that comes right before a validation says so, and the resumed training begins with it, unless it was
    done: the process may have been killed in it.
    """

    priority = 'VERY_HIGH'  # before hooks whose processes talk to each other

    def before_train(self, runner) -> None:
        """Make sure that all processes begin at the same place.

        Raises:
            UserError: If they do not, since only some of them have found the checkpoint.
        """
        if is_distributed():
            places = [torch.tensor([bool(runner._resume), runner.epoch, runner.iter]) for _ in range(2)]
            for place, operation in zip(places, ('min', 'max'), strict=True):
                all_reduce(place, operation)
            if not torch.equal(*places):
                raise UserError(
                    f'some processes begin at iteration {places[0][2]} and others at {places[1][2]}: not all nodes see '
                    f'the checkpoints in {runner.work_dir}; --resume needs a work dir that all of them share'
                )
        loop = runner.train_loop
        if isinstance(loop, ResumableLoop):
            if not runner._resume and is_main_process():
                forget_validation(runner.work_dir)  # of another training in this folder
            loop.find_place()  # a validation may come before the first iteration
            due = torch.tensor(loop.validation_due and not was_validated(runner.work_dir, runner.iter))
            broadcast(due)  # the main process has written the note
            loop.validation_due = bool(due)

    def after_val(self, runner) -> None:
        """Note that it need not be repeated."""
        if isinstance(runner._train_loop, ResumableLoop) and is_main_process():
            note_validation(runner.work_dir, runner.iter)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Write it down."""
        loop, meta = runner.train_loop, checkpoint['meta']
        if isinstance(loop, ResumableLoop):
            meta['batches_of_epoch'] = loop.count_batches(meta['epoch'], meta['iter'])
            meta.setdefault('validation_due', loop.validation_follows(meta['epoch'], meta['iter']))

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Tell the loop."""
        loop = runner.train_loop
        if not runner._resume or not isinstance(loop, ResumableLoop):
            return
        meta = checkpoint['meta']
        if meta.get('seed') is not None and not runner._randomness_cfg.get('diff_rank_seed'):
            loop.dataloader.reseed(runner.seed, meta['seed'])
        loop.validation_due = meta.get('validation_due', False)
        # Without the entry, in a file of another script, this is what mmengine assumes.
        seen = meta.get('batches_of_epoch', meta['iter'] if isinstance(loop, IterLoop) else 0)
        now = images_per_iteration(runner)
        loop.seen = seen if now is None else seen * meta.get('images_per_iteration', now) // now
