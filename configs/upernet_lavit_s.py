# UperNet, LaViT-S.
_base_ = [
    './_base_/models/upernet_lavit.py',
    './_base_/datasets/ade20k.py',
    './_base_/schedules/ade20k_160k.py',
    './_base_/default_runtime_seg.py',
]

train_dataloader = dict(batch_size=2)  # 8 GPUs x 2 images = 16
