# Cascade Mask R-CNN, LaViT-S, 3x multi-scale.
_base_ = [
    './_base_/models/cascade_mask_rcnn_lavit.py',
    './_base_/datasets/coco_instance_multiscale.py',
    './_base_/schedules/coco_3x.py',
    './_base_/default_runtime_det.py',
]

train_dataloader = dict(batch_size=2)  # 8 GPUs x 2 images = 16

# Scales, no mirroring: mmdet's cascade undoes it in the masks itself, with a step that tensors do not have.
tta_pipeline = [
    _base_.tta_pipeline[0],
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='RandomFlip', prob=0.0)] if step[0]['type'] == 'RandomFlip' else step
            for step in _base_.tta_pipeline[1]['transforms']
        ],
    ),
]
