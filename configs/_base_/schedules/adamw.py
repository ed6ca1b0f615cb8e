# AdamW for every recipe; a schedule on top of this sets the learning rate and the length.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', weight_decay=0.05),
    # No decay towards zero for what does not scale a feature: norms, biases, the offsets of the
    # less-attention transforms from the identity, and LayerScale.
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={
            '.delta_psi': dict(decay_mult=0.0),
            '.delta_theta': dict(decay_mult=0.0),
            '.layer_scale': dict(decay_mult=0.0),
        },
    ),
)

val_cfg = dict()
test_cfg = dict()
