# FCN on a plain vision transformer of 8 layers, street scenes.
_base_ = ['./_base_/camvid.py', './_base_/iterations_800.py', '../_base_/default_runtime_seg.py']

custom_imports = dict(imports=['mmlavit', 'mmpretrain.models'])  # the transformer is mmpretrain's
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=(256, 256),
        test_cfg=dict(size_divisor=16),
    ),
    backbone=dict(
        type='mmpretrain.VisionTransformer',
        arch=dict(embed_dims=128, num_layers=8, num_heads=4, feedforward_channels=512),
        img_size=256,
        patch_size=16,
        with_cls_token=False,
        out_type='featmap',
    ),
    decode_head=dict(
        type='FCNHead',
        in_channels=128,
        in_index=0,
        channels=64,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0,
        num_classes=11,
        norm_cfg=dict(type='BN'),
    ),
    test_cfg=dict(mode='whole'),
)
default_hooks = dict(checkpoint=dict(interval=400, save_best=None))
