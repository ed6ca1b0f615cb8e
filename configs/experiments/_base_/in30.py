# 30 of the 275 classes of ImageNet, 500 + 50 images each, in folders named by class.
_base_ = './in275.py'

data_root = 'data/in30/'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=128, crop_ratio_range=(0.35, 1.0)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(
        _delete_=True, type='CustomDataset', data_root=data_root, data_prefix='train', pipeline=train_pipeline
    ),
)
val_dataloader = dict(batch_size=50, num_workers=1, dataset=dict(data_root=data_root, ann_file='', metainfo=None))
test_dataloader = val_dataloader
