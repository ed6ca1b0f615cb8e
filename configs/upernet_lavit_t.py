# UperNet, LaViT-T.
_base_ = './upernet_lavit_s.py'

model = dict(
    backbone=dict(arch='tiny'),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
