# mmdet's PVTv2 with the widths and depths of LaViT-nano.
_base_ = './retinanet_vanilla_nano_bccd.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='PyramidVisionTransformerV2',
        embed_dims=32,
        num_layers=[2, 2, 3, 2],
        num_heads=[1, 2, 4, 6],
        mlp_ratios=[4, 4, 4, 4],
        drop_path_rate=0.0,
    )
)
