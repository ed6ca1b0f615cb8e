"""Runner hooks."""

from .check_numbers_hook import CheckNumbersHook
from .checkpoint_fit_hook import CheckpointFitHook
from .diagonality_loss_hook import DiagonalityLossHook
from .distillation_hook import DistillationHook
from .position_hook import PositionHook
from .stop_hook import StopHook
from .total_batch_hook import TotalBatchHook
from .whole_checkpoint_hook import WholeCheckpointHook

__all__ = [
    'CheckNumbersHook',
    'CheckpointFitHook',
    'DiagonalityLossHook',
    'DistillationHook',
    'PositionHook',
    'StopHook',
    'TotalBatchHook',
    'WholeCheckpointHook',
]
