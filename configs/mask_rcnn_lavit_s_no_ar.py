# Mask R-CNN, LaViT-S, 1x, without attention residuals between stages.
_base_ = './mask_rcnn_lavit_s.py'

model = dict(backbone=dict(attention_residual=False))
