# LaViT-S, fine-tuned at 384x384 from the checkpoint of `lavit_s_in1k.py`.
_base_ = [
    './_base_/models/classifier_lavit.py',
    './_base_/datasets/imagenet_384.py',
    './_base_/schedules/imagenet_384_30e.py',
    './_base_/default_runtime_in1k.py',
]

# Where the training at 224x224 leaves its last epoch. Another file: --cfg-options load_from=FILE
load_from = 'work_dirs/lavit_s_in1k/epoch_300.pth'
train_dataloader = dict(batch_size=64)  # 8 GPUs x 64 images = 512
