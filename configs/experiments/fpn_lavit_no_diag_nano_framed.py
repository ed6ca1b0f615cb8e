# Without the diagonality loss.
_base_ = './fpn_lavit_nano_framed.py'

custom_hooks = [hook for hook in _base_.custom_hooks if hook['type'] != 'DiagonalityLossHook']
