"""Going on with a training in another number of processes."""

from __future__ import annotations

from mmengine.hooks import Hook


class TotalBatchHook(Hook):
    """Write the images per iteration into checkpoints, and say so where a resumed training has another number.

    mmengine restores learning rate and schedule as they were. A schedule that is counted in iterations, also one that
    was converted from epochs, is then too long or too short, and the learning rate is that of another batch.
    """

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Write the number down."""
        checkpoint['meta']['images_per_iteration'] = images_per_iteration(runner)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Compare it."""
        before = checkpoint.get('meta', {}).get('images_per_iteration')
        now = images_per_iteration(runner)
        if not runner._resume or before in (None, now):
            return
        runner.logger.warning(
            f'This training has {now} images per iteration, that of the checkpoint had {before}: learning rate and '
            f'schedule go on as for {before}, with or without --auto-scale-lr. To go on unchanged: --cfg-options '
            f'train_dataloader.batch_size={before / runner.world_size:g}'
        )


def images_per_iteration(runner) -> int:
    """Multiply processes by images per process."""
    return runner.world_size * runner.cfg.train_dataloader.batch_size
