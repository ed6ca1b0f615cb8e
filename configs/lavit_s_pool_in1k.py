# LaViT-S, vanilla layers with keys averaged to 7x7: linear in pixels.
_base_ = './lavit_s_in1k.py'

model = dict(backbone=dict(key_reduction='pool'))
