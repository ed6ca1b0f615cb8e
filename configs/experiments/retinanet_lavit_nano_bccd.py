# RetinaNet, LaViT-nano, slim head, blood cells.
_base_ = [
    '../_base_/models/retinanet_lavit.py',
    './_base_/bccd.py',
    './_base_/iterations_800.py',
    '../_base_/default_runtime_det.py',
]

channels = 64
model = dict(
    backbone=dict(arch='nano', drop_path_rate=0.0),
    neck=dict(in_channels=[32, 64, 128, 192], out_channels=channels, num_outs=3, norm_cfg=dict(type='BN')),
    bbox_head=dict(
        num_classes=3,
        in_channels=channels,
        feat_channels=channels,
        stacked_convs=2,
        norm_cfg=dict(type='GN', num_groups=16),
        # Platelets, red and white cells: 24, 64 and 120 px.
        anchor_generator=dict(
            _delete_=True,
            type='AnchorGenerator',
            base_sizes=[24, 64, 120],
            scales=[1.0],
            ratios=[0.75, 1.33],
            strides=[8, 16, 32],
        ),
    ),
    test_cfg=dict(nms_pre=400),
)
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=400, save_best=None),
)
log_processor = dict(by_epoch=False)
