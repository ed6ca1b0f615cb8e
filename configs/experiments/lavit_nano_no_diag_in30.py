# LaViT-nano without the diagonality loss, 30 classes of ImageNet at 128x128.
_base_ = './lavit_nano_in30.py'

custom_hooks = [hook for hook in _base_.custom_hooks if hook['type'] != 'DiagonalityLossHook']
