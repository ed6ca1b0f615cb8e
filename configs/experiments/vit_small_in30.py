# A plain vision transformer of 8 layers, 30 classes of ImageNet at 128x128, 1880 iterations.
_base_ = './lavit_vanilla_nano_in30.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='VisionTransformer',
        arch=dict(embed_dims=128, num_layers=8, num_heads=4, feedforward_channels=512),
        img_size=128,
        patch_size=16,
        with_cls_token=False,
        out_type='avg_featmap',
    ),
    neck=None,
    head=dict(in_channels=128),
)
