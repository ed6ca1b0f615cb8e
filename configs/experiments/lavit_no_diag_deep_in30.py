# Without the diagonality loss; also for the controls, which have no transforms.
_base_ = './lavit_deep_in30.py'

custom_hooks = [hook for hook in _base_.custom_hooks if hook['type'] != 'DiagonalityLossHook']
