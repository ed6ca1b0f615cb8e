# 275 classes of ImageNet: 500 images each of 100 classes, 84x84, and 100 images each of 175, 64x64; 50 images each of
# the 100 classes for validation. Trained with labels and with a teacher's scores.
data_root = 'data/in275/'

# Run once for each image; crops and flips are drawn on the device.
train_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(84, 84), interpolation='bicubic')]
teacher = dict(
    type='mmlavit.datasets.teacher_scores.AddTeacherScores',
    file=data_root + 'train_scores.npz',
    root=data_root + 'train',
)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 128), interpolation='bicubic'),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=128,
    num_workers=0,
    collate_fn=dict(type='mmlavit.datasets.decoded.keep_batch'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='mmlavit.datasets.decoded.DecodedImages',
        cache=data_root + 'decoded',
        data_root=data_root,
        data_prefix='train',
        ann_file='train.txt',
        pipeline=train_pipeline,
        targets=[teacher],
    ),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=2,
    persistent_workers=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset', data_root=data_root, data_prefix='val', ann_file='val.txt', pipeline=test_pipeline
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
