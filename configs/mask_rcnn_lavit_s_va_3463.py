# Mask R-CNN, LaViT-S, 1x, full attention in all layers, with attention residuals.
_base_ = './mask_rcnn_lavit_s.py'

model = dict(backbone=dict(num_va_layers=(3, 4, 6, 3)))
# The loss is about less-attention layers, and there are none.
custom_hooks = [hook for hook in _base_.custom_hooks if hook['type'] != 'DiagonalityLossHook']
