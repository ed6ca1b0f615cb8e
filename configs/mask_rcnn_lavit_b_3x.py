# Mask R-CNN, LaViT-B, 3x multi-scale.
_base_ = ['./mask_rcnn_lavit_s_3x.py', './_base_/models/lavit_b.py']

model = dict(backbone=_base_.lavit_b)
