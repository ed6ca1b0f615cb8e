# ImageNet-1k at 384x384: the same augmentation, and the whole shorter side in the test.
_base_ = './imagenet_224.py'

train_pipeline = [
    dict(step, scale=384) if step['type'] == 'RandomResizedCrop' else step for step in _base_.train_pipeline
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=384, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=384),
    dict(type='PackInputs'),
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=64, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

tta_pipeline = [*test_pipeline[:-1], _base_.tta_pipeline[-1]]
