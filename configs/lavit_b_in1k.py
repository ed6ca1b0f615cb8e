# LaViT-B.
_base_ = ['./lavit_s_in1k.py', './_base_/models/lavit_b.py']

model = dict(backbone=_base_.lavit_b)
