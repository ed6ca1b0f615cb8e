# 3x: 36 epochs, with the rate and the weight decay of 1x, as Swin and PVTv2.
_base_ = './coco_1x.py'

param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', milestones=[27, 33], by_epoch=True, begin=0, end=36),
]
train_cfg = dict(max_epochs=36)
