# Mask R-CNN, LaViT-S, 1x, vanilla layers with keys averaged to 7x7: linear in pixels.
_base_ = './mask_rcnn_lavit_s.py'

model = dict(backbone=dict(key_reduction='pool'))
