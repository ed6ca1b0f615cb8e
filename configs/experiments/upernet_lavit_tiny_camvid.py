# UperNet, LaViT-T, slim heads, street scenes.
_base_ = './upernet_lavit_nano_camvid.py'

model = dict(
    backbone=dict(arch='tiny'),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
