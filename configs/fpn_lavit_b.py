# Semantic FPN, LaViT-B.
_base_ = './fpn_lavit_s.py'

# 28 layers instead of 16 want more drop path.
model = dict(backbone=dict(arch='base', drop_path_rate=0.3))
