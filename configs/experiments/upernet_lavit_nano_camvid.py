# UperNet, LaViT-nano, slim heads, street scenes.
_base_ = [
    '../_base_/models/upernet_lavit.py',
    './_base_/camvid.py',
    './_base_/iterations_800.py',
    '../_base_/default_runtime_seg.py',
]

norm_cfg = dict(type='BN')
model = dict(
    data_preprocessor=dict(size=(256, 256)),
    backbone=dict(arch='nano', drop_path_rate=0.0),
    decode_head=dict(in_channels=[32, 64, 128, 192], channels=64, dropout_ratio=0, num_classes=11, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=128, channels=64, dropout_ratio=0, num_classes=11, norm_cfg=norm_cfg),
)
default_hooks = dict(checkpoint=dict(interval=400, save_best=None))
