# UperNet, LaViT with the depths of LaViT-S and slim widths, slim heads, street scenes.
_base_ = ['./upernet_lavit_nano_camvid.py', './_base_/deep.py']

model = dict(
    backbone=dict(arch=dict(_delete_=True, **_base_.deep_arch)),
    decode_head=dict(in_channels=[32, 64, 160, 256]),
    auxiliary_head=dict(in_channels=160),
)
