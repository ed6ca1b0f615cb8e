# LaViT-nano, 275 classes of ImageNet at 128x128, 7 epochs.
_base_ = [
    '../_base_/models/classifier_lavit.py',
    './_base_/in275.py',
    '../_base_/schedules/adamw.py',
    '../_base_/default_runtime_cls.py',
]

model = dict(
    data_preprocessor=dict(
        type='mmlavit.datasets.decoded.CroppingDataPreprocessor',
        num_classes=275,
        crop_size=128,
        crop_ratio_range=(0.35, 1.0),
    ),
    backbone=dict(arch='nano', drop_path_rate=0.0),
    head=dict(num_classes=275, in_channels=192, loss=dict(_delete_=True, type='CrossEntropyLoss', use_soft=True)),
    train_cfg=None,
)

optim_wrapper = dict(optimizer=dict(lr=2e-3, fused=True), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=1, end=7, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=7, val_interval=1)
default_hooks = dict(checkpoint=dict(save_best=None))
