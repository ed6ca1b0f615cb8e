_base_ = [
    '../_base_/models/upernet_lavit.py',
    '../_base_/datasets/handwritten_semantic.py',
    '../_base_/schedules/handwritten_1k.py',
    '../_base_/default_runtime_seg.py',
]

# A slim head. BN instead of SyncBN, which needs a GPU.
norm_cfg = dict(type='BN')
model = dict(
    data_preprocessor=dict(size=(160, 160)),
    backbone=dict(arch='nano', drop_path_rate=0.0, init_cfg=None),
    decode_head=dict(in_channels=[32, 64, 128, 192], channels=64, num_classes=11, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=128, channels=64, num_classes=11, norm_cfg=norm_cfg),
)

default_hooks = dict(checkpoint=dict(interval=500))

train_dataloader = dict(batch_size=8)
# The learning rate is for (1 process) x (8 images).
auto_scale_lr = dict(enable=False, base_batch_size=8)
