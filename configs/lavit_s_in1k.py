_base_ = [
    './_base_/models/classifier_lavit.py',
    './_base_/datasets/imagenet_224.py',
    './_base_/schedules/imagenet_300e.py',
    './_base_/default_runtime_cls.py',
]

train_dataloader = dict(batch_size=128)  # x 8 GPUs
