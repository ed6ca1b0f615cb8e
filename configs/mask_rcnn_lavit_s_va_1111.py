# Mask R-CNN, LaViT-S, 1x, 1-1-1-1 vanilla layers instead of 1-1-2-1.
_base_ = './mask_rcnn_lavit_s.py'

model = dict(backbone=dict(num_va_layers=(1, 1, 1, 1)))
