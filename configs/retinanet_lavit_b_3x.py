# RetinaNet, LaViT-B, 3x multi-scale.
_base_ = './retinanet_lavit_s_3x.py'

# 28 layers instead of 16 want more drop path.
model = dict(backbone=dict(arch='base', drop_path_rate=0.3))
