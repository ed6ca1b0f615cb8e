# 800 iterations: 40 of warm-up, then a cosine.
_base_ = '../../_base_/schedules/adamw.py'

optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=40),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=40, end=800),
]
train_cfg = dict(by_epoch=False, max_iters=800, val_interval=800)
