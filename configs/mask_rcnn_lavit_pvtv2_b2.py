# Mask R-CNN, LaViT with the trunk of PVTv2-B2, 1x, for its weights.
_base_ = './mask_rcnn_lavit_s.py'

model = dict(backbone=dict(arch='pvt_v2_b2'))
