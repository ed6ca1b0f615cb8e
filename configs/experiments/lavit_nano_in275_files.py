# For distillation, which loads images one by one, without labels.
_base_ = './lavit_nano_in275.py'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=128, crop_ratio_range=(0.35, 1.0)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    num_workers=1,
    persistent_workers=True,
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root=_base_.data_root,
        data_prefix='train',
        ann_file='train.txt',
        pipeline=train_pipeline,
    ),
)
model = dict(
    data_preprocessor=dict(
        _delete_=True,
        type='ClsDataPreprocessor',
        num_classes=275,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    )
)
