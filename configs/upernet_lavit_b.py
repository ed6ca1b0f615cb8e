# UperNet, LaViT-B.
_base_ = './upernet_lavit_s.py'

# 28 layers instead of 16 want more drop path.
model = dict(backbone=dict(arch='base', drop_path_rate=0.3))
