# RetinaNet, LaViT-nano, slim head.
_base_ = [
    '../_base_/models/retinanet_lavit.py',
    '../_base_/datasets/handwritten_detection.py',
    '../_base_/schedules/handwritten_8e.py',
    '../_base_/default_runtime_det.py',
]

# A slim head on three levels. BatchNorm in the FPN makes training from scratch faster; the head
# runs on all levels with one set of weights, so it has GroupNorm.
channels = 64
model = dict(
    backbone=dict(arch='nano', drop_path_rate=0.0),
    neck=dict(
        in_channels=[32, 64, 128, 192],
        out_channels=channels,
        num_outs=3,
        norm_cfg=dict(type='BN'),
    ),
    bbox_head=dict(
        num_classes=10,
        in_channels=channels,
        feat_channels=channels,
        stacked_convs=2,
        norm_cfg=dict(type='GN', num_groups=16),
        # In the shapes of the digits: 20 to 65 px, mostly upright.
        anchor_generator=dict(
            _delete_=True,
            type='AnchorGenerator',
            base_sizes=[26, 38, 54],
            scales=[1.0],
            ratios=[1.2, 1.8],
            strides=[8, 16, 32],
        ),
    ),
    test_cfg=dict(nms_pre=400),
)

train_dataloader = dict(batch_size=8)
# The learning rate is for (1 process) x (8 images).
auto_scale_lr = dict(enable=False, base_batch_size=8)
