# 300 epochs, as DeiT and PVTv2.
_base_ = './adamw.py'

# The less-attention transforms learn at the rate of COCO's recipe: at 1e-3, scores of a long chain of them grow far too
# large (docs/reliability.md, "Numbers"). Both rates end at a hundredth.
optim_wrapper = dict(
    optimizer=dict(lr=1e-3),
    clip_grad=dict(max_norm=5.0),
    paramwise_cfg=dict(custom_keys={'.delta_psi': dict(lr_mult=0.1), '.delta_theta': dict(lr_mult=0.1)}),
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-3,
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=0.01,
        by_epoch=True,
        begin=5,
        end=300,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)

# The learning rate is for (8 GPUs) x (128 images per GPU) = 1024.
auto_scale_lr = dict(enable=False, base_batch_size=1024)

# A resumed training goes on as if it had not been interrupted: docs/reliability.md.
exact_resume = True
