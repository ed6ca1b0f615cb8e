_base_ = [
    './_base_/models/fpn_lavit.py',
    './_base_/datasets/ade20k.py',
    './_base_/schedules/ade20k_80k.py',
    './_base_/default_runtime_seg.py',
]

train_dataloader = dict(batch_size=4)  # x 4 GPUs
