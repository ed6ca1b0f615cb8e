# Mask R-CNN, LaViT-T, 3x multi-scale.
_base_ = './mask_rcnn_lavit_s_3x.py'

model = dict(backbone=dict(arch='tiny'), neck=dict(in_channels=[64, 128, 256, 512]))
