# LaViT with the depths of LaViT-S and slim widths, 30 classes of ImageNet at 128x128, 1880 iterations (8 epochs).
_base_ = ['./lavit_nano_in30.py', './_base_/deep.py']

model = dict(
    backbone=dict(arch=dict(_delete_=True, **_base_.deep_arch)),
    head=dict(in_channels=256),
)
