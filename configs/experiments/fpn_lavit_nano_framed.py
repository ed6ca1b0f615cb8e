# A task that needs context: in handwritten scenes, the digits that are the same as the framed one. LaViT-nano with a
# feature pyramid, whose heads pool nothing over the whole image. Starts from --cfg-options
# model.backbone.init_cfg.checkpoint=FILE.
_base_ = [
    '../_base_/models/fpn_lavit.py',
    '../_base_/datasets/handwritten_semantic.py',
    '../_base_/schedules/handwritten_1600.py',
    '../_base_/default_runtime_seg.py',
]

# Digits of the class of the framed one have their labels, those of other classes a common one.
metainfo = dict(
    classes=(*_base_.metainfo.classes, 'another digit'),
    palette=[*_base_.metainfo.palette, [128, 128, 128]],
)
class_weight = [0.1] + [1.0] * 11
model = dict(
    # Padding is background: with class weights, official mmseg 1.2.2 stumbles over an ignored label.
    data_preprocessor=dict(size=(160, 160), seg_pad_val=0),
    backbone=dict(arch='nano', drop_path_rate=0.0),
    neck=dict(in_channels=[32, 64, 128, 192], out_channels=64),
    decode_head=dict(
        in_channels=[64, 64, 64, 64],
        channels=64,
        dropout_ratio=0,
        num_classes=12,
        norm_cfg=dict(type='BN'),
        loss_decode=dict(type='CrossEntropyLoss', class_weight=class_weight, loss_weight=4.0),
    ),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='mmlavit.datasets.framed_digit.FrameDigit'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='mmlavit.datasets.framed_digit.FrameDigit', test=True),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(batch_size=8, dataset=dict(metainfo=metainfo, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(metainfo=metainfo, pipeline=test_pipeline))
test_dataloader = val_dataloader
default_hooks = dict(checkpoint=dict(interval=800, save_best=None))
