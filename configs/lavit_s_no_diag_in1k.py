# LaViT-S, trained without the diagonality loss.
_base_ = './lavit_s_in1k.py'

custom_hooks = [hook for hook in _base_.custom_hooks if hook['type'] != 'DiagonalityLossHook']
