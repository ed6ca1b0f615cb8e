# Mask R-CNN, LaViT-S, 1x.
_base_ = [
    './_base_/models/mask_rcnn_lavit.py',
    './_base_/datasets/coco_instance.py',
    './_base_/schedules/coco_1x.py',
    './_base_/default_runtime_det.py',
]

train_dataloader = dict(batch_size=2)  # 8 GPUs x 2 images = 16
