"""A learning rate that hardly comes to its height."""

from __future__ import annotations

from mmengine.hooks import Hook

_SHARE = 1 / 3


class WarmUpHook(Hook):
    """Say so where a warm-up takes more than a third of the training, as that of a large dataset with a small one."""

    def before_train(self, runner) -> None:
        """Compare the schedules with the length of the training."""
        schedulers = runner.param_schedulers
        for number, scheduler in enumerate(schedulers if isinstance(schedulers, list) else []):
            rises = getattr(scheduler, 'start_factor', 1.0) < getattr(scheduler, 'end_factor', 1.0)
            if not rises or scheduler.begin > 0:
                continue
            unit, whole = ('epochs', runner.max_epochs) if scheduler.by_epoch else ('iterations', runner.max_iters)
            if scheduler.end > _SHARE * whole:
                runner.logger.warning(
                    f'The learning rate warms up for {scheduler.end} {unit}, and the training has {whole}: set '
                    f'param_scheduler.{number}.end, or train for longer'
                )
