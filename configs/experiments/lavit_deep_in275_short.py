# 158 iterations, a tenth of the 6 epochs: what labels teach in the time of a distillation.
_base_ = './lavit_deep_in275.py'

param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=8),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=8, end=158),
]
train_cfg = dict(_delete_=True, by_epoch=False, max_iters=158, val_interval=158)
default_hooks = dict(logger=dict(log_metric_by_epoch=False), checkpoint=dict(by_epoch=False, interval=158))
log_processor = dict(by_epoch=False)
