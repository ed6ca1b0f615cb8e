# mmseg's ResNet-18, so slim that it has as many parameters as LaViT-nano.
_base_ = './upernet_vanilla_nano_camvid.py'

model = dict(
    backbone=dict(_delete_=True, type='ResNet', depth=18, base_channels=28, norm_cfg=dict(type='BN')),
    decode_head=dict(in_channels=[28, 56, 112, 224]),
    auxiliary_head=dict(in_channels=112),
)
