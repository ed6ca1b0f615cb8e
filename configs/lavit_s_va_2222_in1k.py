# LaViT-S, 2-2-2-2 vanilla layers instead of 1-1-2-1.
_base_ = './lavit_s_in1k.py'

model = dict(backbone=dict(num_va_layers=(2, 2, 2, 2)))
