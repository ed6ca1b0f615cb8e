# LaViT-nano, 30 classes of ImageNet at 128x128, 1880 iterations (8 epochs).
_base_ = [
    '../_base_/models/classifier_lavit.py',
    './_base_/in30.py',
    './_base_/iterations_800.py',
    '../_base_/default_runtime_cls.py',
]

model = dict(
    data_preprocessor=dict(num_classes=30),
    backbone=dict(arch='nano', drop_path_rate=0.0),
    head=dict(num_classes=30, in_channels=192),
    train_cfg=None,
)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=160),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=160, end=1880),
]
train_cfg = dict(max_iters=1880, val_interval=940)
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False), checkpoint=dict(by_epoch=False, interval=940, save_best=None)
)
log_processor = dict(by_epoch=False)
