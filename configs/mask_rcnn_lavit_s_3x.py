# Mask R-CNN, LaViT-S, 3x multi-scale.
_base_ = [
    './_base_/models/mask_rcnn_lavit.py',
    './_base_/datasets/coco_instance_multiscale.py',
    './_base_/schedules/coco_3x.py',
    './_base_/default_runtime_det.py',
]

train_dataloader = dict(batch_size=2)  # 8 GPUs x 2 images = 16
