# Without the diagonality loss; for the controls, which have no transforms.
_base_ = './retinanet_lavit_nano_bccd.py'

custom_hooks = [hook for hook in _base_.custom_hooks if hook['type'] != 'DiagonalityLossHook']
