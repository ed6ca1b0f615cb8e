# LaViT with the depths of LaViT-S and slim widths, 275 classes of ImageNet at 128x128, 6 epochs.
_base_ = ['./lavit_nano_in275.py', './_base_/deep.py']

model = dict(
    backbone=dict(arch=dict(_delete_=True, **_base_.deep_arch)),
    head=dict(in_channels=256),
)
train_dataloader = dict(batch_size=256)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=1, end=6, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=6, val_interval=6)
