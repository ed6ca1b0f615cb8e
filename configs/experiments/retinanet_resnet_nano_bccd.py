# mmdet's ResNet-18, so slim that it has as many parameters as LaViT-nano.
_base_ = './retinanet_vanilla_nano_bccd.py'

model = dict(
    backbone=dict(_delete_=True, type='ResNet', depth=18, base_channels=28, norm_eval=False),
    neck=dict(in_channels=[28, 56, 112, 224]),
)
