# LaViT with the trunk of the PVTv2 in retinanet_pvt_v2_nano_bccd.py, so that it can take over that one's weights.
_base_ = './retinanet_lavit_nano_bccd.py'

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=(32, 64, 128, 192),
            num_heads=(1, 2, 4, 6),
            depths=(2, 2, 3, 2),
            num_va_layers=(1, 1, 1, 1),
            mlp_ratios=(4, 4, 4, 4),
            patch_kernels=(7, 3, 3, 3),
            norm_eps=(1e-5, 1e-5, 1e-6),
        )
    )
)
