# Semantic FPN, LaViT-S.
_base_ = [
    './_base_/models/fpn_lavit.py',
    './_base_/datasets/ade20k.py',
    './_base_/schedules/ade20k_80k.py',
    './_base_/default_runtime_seg.py',
]

train_dataloader = dict(batch_size=4)  # 4 GPUs x 4 images = 16
