# LaViT-B.
_base_ = './lavit_s_in1k.py'

# 28 layers instead of 16 want more drop path.
model = dict(backbone=dict(arch='base', drop_path_rate=0.3))
