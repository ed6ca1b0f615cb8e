# 369 iterations, a tenth of the 7 epochs: what labels and EfficientNet-Lite2 teach in the time of a distillation.
_base_ = './lavit_nano_in275.py'

param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=18),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=18, end=369),
]
train_cfg = dict(_delete_=True, by_epoch=False, max_iters=369, val_interval=369)
default_hooks = dict(logger=dict(log_metric_by_epoch=False), checkpoint=dict(by_epoch=False, interval=369))
log_processor = dict(by_epoch=False)
