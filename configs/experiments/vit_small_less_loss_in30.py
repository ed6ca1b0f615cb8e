# The same with the diagonality loss.
_base_ = './vit_small_less_in30.py'

custom_hooks = [dict(type='DiagonalityLossHook', weight=0.1), *_base_.custom_hooks]
