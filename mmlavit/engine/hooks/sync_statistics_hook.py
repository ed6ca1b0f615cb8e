"""Keep the running statistics of BatchNorms the same in all processes."""

from __future__ import annotations

from collections.abc import Iterator

from mmengine.dist import all_reduce_params
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor, nn


@HOOKS.register_module()
class SyncStatisticsHook(Hook):
    """Average the running statistics of BatchNorms over all processes, after every training iteration.

    Each process normalises by its own images and so arrives at its own statistics. mmengine's ``SyncBuffersHook``
    averages them before a validation; but a checkpoint by iterations, and whatever ``EMAHook`` has averaged, still
    come from one process, and are not what was validated. Averaged after each iteration, before EMA and checkpoints
    look at them, they are the same everywhere at any time. It takes one message of a few numbers.

    Synchronised BatchNorms (SyncBN) and those in eval mode agree already and are left alone.

    Example:
        >>> custom_hooks = [dict(type='SyncStatisticsHook'), dict(type='EMAHook')]
    """

    priority = 'HIGH'  # before EMAHook in any usual place, and before CheckpointHook

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        """Average; nothing in a single process."""
        all_reduce_params(list(_own_statistics(runner.model)), op='mean')


def _own_statistics(model: nn.Module) -> Iterator[Tensor]:
    """Yield the statistics that were updated from this process's images alone."""
    for module in model.modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm) or isinstance(module, nn.SyncBatchNorm):
            continue
        if module.training and module.track_running_stats:
            yield module.running_mean
            yield module.running_var
