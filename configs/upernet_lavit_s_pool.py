# UperNet, LaViT-S, vanilla layers with keys averaged to 7x7: linear in pixels.
_base_ = './upernet_lavit_s.py'

model = dict(backbone=dict(key_reduction='pool'))
