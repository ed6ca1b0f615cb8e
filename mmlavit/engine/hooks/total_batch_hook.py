"""Images per iteration: as many as the learning rate is for, and when resumed as many as before."""

from __future__ import annotations

from mmengine.hooks import Hook


class TotalBatchHook(Hook):
    """Write the images per iteration into checkpoints, and say so where a resumed training has another number.

    mmengine restores learning rate and schedule as they were. A schedule that is counted in iterations, also one that
    was converted from epochs, is then too long or too short, and the learning rate is that of another batch. A training
    that begins is told if its config states another batch for its learning rate.
    """

    def before_train(self, runner) -> None:
        """Compare the batch with that of the config's learning rate."""
        scaling = runner.cfg.get('auto_scale_lr') or {}
        base, now = scaling.get('base_batch_size'), images_per_iteration(runner)
        if runner._resume or None in (base, now):
            return
        counts = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        has = f'{now * counts} images per step of the optimizer ({now} x accumulative_counts={counts})'
        if scaling.get('enable'):
            if counts > 1:
                runner.logger.warning(
                    f'--auto-scale-lr has made the learning rate one for {now} images, but this training has {has}: '
                    'leave the option out, and set optim_wrapper.optimizer.lr if the config has another batch'
                )
        elif now * counts != base:
            advice = '--auto-scale-lr of train.py, or --lr of distill.py'
            runner.logger.warning(
                f'The learning rate is for {base} images per iteration, as the config says (auto_scale_lr), but this '
                f'training has {now if counts == 1 else has}. In proportion it would be {now * counts / base:g} times '
                f'as large: {advice if counts == 1 else "set optim_wrapper.optimizer.lr"}'
            )

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Write the number down."""
        if (number := images_per_iteration(runner)) is not None:
            checkpoint['meta']['images_per_iteration'] = number

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Compare it."""
        before = checkpoint.get('meta', {}).get('images_per_iteration')
        now = images_per_iteration(runner)
        if not runner._resume or None in (before, now) or before == now:
            return
        batch, rest = divmod(before, runner.world_size)
        advice = f'--cfg-options train_dataloader.batch_size={batch}'
        if rest:
            advice = f'another number of processes, which divides {before}'
        runner.logger.warning(
            f'This training has {now} images per iteration, that of the checkpoint had {before}: learning rate and '
            f'schedule go on as for {before}, with or without --auto-scale-lr. To go on unchanged: {advice}'
        )


def images_per_iteration(runner) -> int | None:
    """Multiply processes by images per process; None if there is no such number, as with several data sources."""
    batch = runner.cfg.train_dataloader.get('batch_size')
    return runner.world_size * batch if isinstance(batch, int) else None
