"""Training and testing: the way from a config to a finished run, hooks, strategies, processes."""

from .distributed import local_rank
from .hooks import CheckNumbersHook, DiagonalityLossHook, DistillationHook, TotalBatchHook
from .mixed_precision import BFloat16OptimWrapper
from .runner import run

__all__ = [
    'BFloat16OptimWrapper',
    'CheckNumbersHook',
    'DiagonalityLossHook',
    'DistillationHook',
    'TotalBatchHook',
    'local_rank',
    'run',
]
