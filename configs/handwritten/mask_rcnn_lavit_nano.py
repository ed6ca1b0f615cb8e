# Mask R-CNN, LaViT-nano, slim heads.
_base_ = [
    '../_base_/models/mask_rcnn_lavit.py',
    '../_base_/datasets/handwritten_instance.py',
    '../_base_/schedules/handwritten_8e.py',
    '../_base_/default_runtime_det.py',
]

# Slim heads: those of COCO cost a hundred times the backbone's multiply-adds. BatchNorm in the
# FPN makes training from scratch faster.
channels = 64
model = dict(
    backbone=dict(arch='nano', drop_path_rate=0.0),
    neck=dict(
        in_channels=[32, 64, 128, 192],
        out_channels=channels,
        num_outs=4,
        norm_cfg=dict(type='BN'),
    ),
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        # One anchor at each position, in the shapes of the digits: 20 to 65 px, mostly upright.
        anchor_generator=dict(base_sizes=[24, 34, 48, 64], scales=[1.0], ratios=[1.5], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        # One sample a bin: on the CPU, RoIAlign would otherwise be a third of a training step.
        bbox_roi_extractor=dict(out_channels=channels, roi_layer=dict(sampling_ratio=1)),
        bbox_head=dict(in_channels=channels, fc_out_channels=256, num_classes=10),
        mask_roi_extractor=dict(out_channels=channels, roi_layer=dict(sampling_ratio=1)),
        mask_head=dict(num_convs=2, in_channels=channels, conv_out_channels=channels, num_classes=10),
    ),
    train_cfg=dict(
        rpn=dict(assigner=dict(pos_iou_thr=0.6), sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=400, max_per_img=200),
        rcnn=dict(sampler=dict(num=64, pos_fraction=0.4)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=400, max_per_img=100)),
)

train_dataloader = dict(batch_size=8)
# The learning rate is for (1 process) x (8 images).
auto_scale_lr = dict(enable=False, base_batch_size=8)
