"""Training and testing: the way from a config to a finished run, hooks, strategies, processes."""

from .distributed import local_rank
from .hooks import DiagonalityLossHook, SyncStatisticsHook, TotalBatchHook
from .runner import run

__all__ = ['DiagonalityLossHook', 'SyncStatisticsHook', 'TotalBatchHook', 'local_rank', 'run']
