# RetinaNet, LaViT-nano, slim head, 50 images of COCO: validated on the images that it learns, tested on 50 others.
_base_ = [
    '../_base_/models/retinanet_lavit.py',
    '../_base_/datasets/coco_detection.py',
    './_base_/iterations_800.py',
    '../_base_/default_runtime_det.py',
]

channels = 64
model = dict(
    backbone=dict(arch='nano', drop_path_rate=0.0),
    neck=dict(in_channels=[32, 64, 128, 192], out_channels=channels, norm_cfg=dict(type='BN')),
    bbox_head=dict(
        in_channels=channels, feat_channels=channels, stacked_convs=2, norm_cfg=dict(type='GN', num_groups=16)
    ),
    test_cfg=dict(nms_pre=400),
)

data_root = 'data/coco_tiny/'
resize = dict(type='Resize', scale=(400, 300), keep_ratio=True)
train_pipeline = [*_base_.train_pipeline[:2], resize, *_base_.train_pipeline[3:]]
test_pipeline = [_base_.test_pipeline[0], resize, *_base_.test_pipeline[2:]]
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(data_root=data_root, pipeline=train_pipeline),
)
test_dataloader = dict(num_workers=1, dataset=dict(data_root=data_root, pipeline=test_pipeline))
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        data_root=data_root, ann_file=_base_.train_ann, data_prefix=dict(img='train2017/'), pipeline=test_pipeline
    ),
)
val_evaluator = dict(ann_file=data_root + _base_.train_ann)
test_evaluator = dict(ann_file=data_root + _base_.val_ann)

default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=400, save_best=None),
)
log_processor = dict(by_epoch=False)
