# 1,600 iterations: 100 of warm-up, then a cosine.
_base_ = './adamw.py'

optim_wrapper = dict(optimizer=dict(lr=2e-3), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=100, end=1600),
]
train_cfg = dict(by_epoch=False, max_iters=1600, val_interval=800)
