# Semantic FPN, LaViT-B.
_base_ = ['./fpn_lavit_s.py', './_base_/models/lavit_b.py']

model = dict(backbone=_base_.lavit_b)
