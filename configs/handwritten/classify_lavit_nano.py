# LaViT-nano, ten classes of crops.
_base_ = [
    '../_base_/models/classifier_lavit.py',
    '../_base_/datasets/handwritten_classification.py',
    '../_base_/schedules/handwritten_30e.py',
    '../_base_/default_runtime_cls.py',
]

model = dict(
    data_preprocessor=dict(num_classes=10),
    backbone=dict(arch='nano', drop_path_rate=0.0),
    head=dict(num_classes=10, in_channels=192),
    # Ten classes and a short schedule need no mixing of images.
    train_cfg=None,
)

train_dataloader = dict(batch_size=64)
# The learning rate is for (1 process) x (64 images).
auto_scale_lr = dict(enable=False, base_batch_size=64)
