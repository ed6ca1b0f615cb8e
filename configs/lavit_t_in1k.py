# LaViT-T.
_base_ = './lavit_s_in1k.py'

model = dict(backbone=dict(arch='tiny'))
