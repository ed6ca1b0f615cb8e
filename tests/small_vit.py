"""The config of a plain vision transformer that is small enough for loops."""

DEPTH, HEADS, DIM = 4, 2, 32
VIT = dict(
    type='mmpretrain.VisionTransformer',
    arch=dict(embed_dims=DIM, num_layers=DEPTH, num_heads=HEADS, feedforward_channels=64),
    img_size=64,
    patch_size=16,
    out_type='featmap',
)
