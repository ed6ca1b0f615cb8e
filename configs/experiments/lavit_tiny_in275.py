# LaViT-T, 275 classes of ImageNet, 6 epochs; crops of 64x64 and 96x96, since training at 128x128 takes twice as long.
_base_ = './lavit_nano_in275.py'

model = dict(
    data_preprocessor=dict(crop_size=(64, 96)),
    backbone=dict(arch='tiny'),
    head=dict(in_channels=512),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=1, end=6, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=6)
