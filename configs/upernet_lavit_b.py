# UperNet, LaViT-B.
_base_ = ['./upernet_lavit_s.py', './_base_/models/lavit_b.py']

model = dict(backbone=_base_.lavit_b)
