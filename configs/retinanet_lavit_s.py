# RetinaNet, LaViT-S, 1x.
_base_ = [
    './_base_/models/retinanet_lavit.py',
    './_base_/datasets/coco_detection.py',
    './_base_/schedules/coco_1x.py',
    './_base_/default_runtime_det.py',
]

train_dataloader = dict(batch_size=2)  # 8 GPUs x 2 images = 16
