"""Runner hooks."""

from .diagonality_loss_hook import DiagonalityLossHook
from .sync_statistics_hook import SyncStatisticsHook

__all__ = ['DiagonalityLossHook', 'SyncStatisticsHook']
