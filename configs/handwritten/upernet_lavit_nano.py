# UperNet, LaViT-nano, slim heads.
_base_ = [
    '../_base_/models/upernet_lavit.py',
    '../_base_/datasets/handwritten_semantic.py',
    '../_base_/schedules/handwritten_1600.py',
    '../_base_/default_runtime_seg.py',
]

# A slim head. BN instead of SyncBN, which needs a GPU.
norm_cfg = dict(type='BN')
# Nine tenths of the pixels are background, which is learned at once; the digits carry the loss.
class_weight = [0.1] + [1.0] * 10
model = dict(
    # Padding is background: with class weights, official mmseg 1.2.2 stumbles over an ignored label.
    data_preprocessor=dict(size=(160, 160), seg_pad_val=0),
    backbone=dict(arch='nano', drop_path_rate=0.0),
    decode_head=dict(
        in_channels=[32, 64, 128, 192],
        channels=64,
        dropout_ratio=0,
        num_classes=11,
        norm_cfg=norm_cfg,
        loss_decode=dict(type='CrossEntropyLoss', class_weight=class_weight, loss_weight=4.0),
    ),
    auxiliary_head=dict(
        in_channels=128,
        channels=64,
        dropout_ratio=0,
        num_classes=11,
        norm_cfg=norm_cfg,
        loss_decode=dict(class_weight=class_weight, loss_weight=2.0),
    ),
)

default_hooks = dict(checkpoint=dict(interval=800))

train_dataloader = dict(batch_size=8)
# The learning rate is for (1 process) x (8 images).
auto_scale_lr = dict(enable=False, base_batch_size=8)
