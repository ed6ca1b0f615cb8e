# 30 epochs of fine-tuning at 384x384, with the rate and the weight decay of Swin.
_base_ = './adamw.py'

optim_wrapper = dict(optimizer=dict(lr=2e-5, weight_decay=1e-8), clip_grad=dict(max_norm=5.0))
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
        end=30,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=30, val_interval=1)

# The learning rate is for (8 GPUs) x (64 images per GPU) = 512.
auto_scale_lr = dict(enable=False, base_batch_size=512)

# A resumed training goes on as if it had not been interrupted: docs/reliability.md.
exact_resume = True
