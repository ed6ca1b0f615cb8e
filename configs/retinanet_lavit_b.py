# RetinaNet, LaViT-B, 1x.
_base_ = ['./retinanet_lavit_s.py', './_base_/models/lavit_b.py']

model = dict(backbone=_base_.lavit_b)
