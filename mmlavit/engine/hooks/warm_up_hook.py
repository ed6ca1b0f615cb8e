"""A learning rate that hardly comes to its height."""

from __future__ import annotations

from mmengine.hooks import Hook

_SHARE = 1 / 3


class WarmUpHook(Hook):
    """Say so where a warm-up takes more than a third of the training, as that of a large dataset with a small one."""

    def before_train(self, runner) -> None:
        """Compare the schedules with the length of the training."""
        schedulers = runner.param_schedulers
        for scheduler in schedulers if isinstance(schedulers, list) else []:
            rises = getattr(scheduler, 'start_factor', 1.0) < getattr(scheduler, 'end_factor', 1.0)
            if not rises or scheduler.begin > 0 or scheduler.param_name != 'lr':
                continue
            unit = 'epochs' if scheduler.by_epoch else 'iterations'
            whole = getattr(runner.train_loop, f'max_{"epochs" if scheduler.by_epoch else "iters"}', None)
            if scheduler.end - scheduler.begin == 1:  # mmengine's ends at the step before
                runner.logger.warning(
                    f'The learning rate stays at {scheduler.start_factor:g} times its full value: in mmengine, a '
                    f'warm-up of one {unit[:-1]} never ends. Set a later end in param_scheduler'
                    + (', or convert_to_iter_based=True' if scheduler.by_epoch else '')
                )
            elif whole is not None and scheduler.end > _SHARE * whole:
                runner.logger.warning(
                    f'The learning rate warms up for {scheduler.end} of {whole} {unit}: shorten it in param_scheduler, '
                    'or train for longer'
                )
