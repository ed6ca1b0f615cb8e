"""Runner hooks."""

from .diagonality_loss_hook import DiagonalityLossHook

__all__ = ['DiagonalityLossHook']
