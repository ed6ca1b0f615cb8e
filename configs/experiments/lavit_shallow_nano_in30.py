# The vanilla twin of LaViT-nano with two layers instead of three in stage 3, for the question whether a smaller network
# would do as well.
_base_ = './lavit_vanilla_nano_in30.py'

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=(32, 64, 128, 192),
            num_heads=(1, 2, 4, 6),
            depths=(2, 2, 2, 2),
            num_va_layers=(2, 2, 2, 2),
            mlp_ratios=(4, 4, 4, 4),
            key_grid=4,
            query_grids=(4, 4, 8, 4),
        ),
        num_va_layers=None,
    )
)
