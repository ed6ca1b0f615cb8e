# RetinaNet, LaViT-T, 1x.
_base_ = './retinanet_lavit_s.py'

model = dict(backbone=dict(arch='tiny'), neck=dict(in_channels=[64, 128, 256, 512]))
