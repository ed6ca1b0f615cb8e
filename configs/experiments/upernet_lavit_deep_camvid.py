# UperNet, LaViT with the depths of LaViT-S and slim widths, slim heads, street scenes.
_base_ = './upernet_lavit_nano_camvid.py'

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=(32, 64, 160, 256),
            num_heads=(1, 2, 5, 8),
            depths=(3, 4, 6, 3),
            num_va_layers=(1, 1, 2, 1),
            mlp_ratios=(4, 4, 4, 4),
            key_grid=4,
            query_grids=(4, 4, 8, 4),
        ),
    ),
    decode_head=dict(in_channels=[32, 64, 160, 256]),
    auxiliary_head=dict(in_channels=160),
)
