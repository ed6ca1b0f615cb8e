# Mask R-CNN, LaViT-S, 1x, trained without the diagonality loss.
_base_ = './mask_rcnn_lavit_s.py'

custom_hooks = [hook for hook in _base_.custom_hooks if hook['type'] != 'DiagonalityLossHook']
