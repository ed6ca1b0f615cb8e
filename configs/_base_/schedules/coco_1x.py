# 1x: 12 epochs. Learning rate of PVT and Swin; weight decay of Swin (PVT's 1e-4 is a remnant of
# SGD, and under AdamW practically none).
_base_ = './adamw.py'

optim_wrapper = dict(optimizer=dict(lr=1e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', milestones=[8, 11], by_epoch=True, begin=0, end=12),
]
train_cfg = dict(by_epoch=True, max_epochs=12, val_interval=1)

# The learning rate is for (8 GPUs) x (2 images per GPU) = 16.
auto_scale_lr = dict(enable=False, base_batch_size=16)

# A resumed training goes on as if it had not been interrupted: docs/reliability.md.
exact_resume = True
