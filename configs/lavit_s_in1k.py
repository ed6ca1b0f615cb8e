# LaViT-S.
_base_ = [
    './_base_/models/classifier_lavit.py',
    './_base_/datasets/imagenet_224.py',
    './_base_/schedules/imagenet_300e.py',
    './_base_/default_runtime_in1k.py',
]

train_dataloader = dict(batch_size=128)  # 8 GPUs x 128 images = 1024
