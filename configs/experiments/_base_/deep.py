# The depths of LaViT-S and slim widths, with references for 128x128.
deep_arch = dict(
    embed_dims=(32, 64, 160, 256),
    num_heads=(1, 2, 5, 8),
    depths=(3, 4, 6, 3),
    num_va_layers=(1, 1, 2, 1),
    mlp_ratios=(4, 4, 4, 4),
    key_grid=4,
    query_grids=(4, 4, 8, 4),
)
