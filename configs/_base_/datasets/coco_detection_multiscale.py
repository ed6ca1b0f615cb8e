# COCO 2017 boxes, trained at many scales.
_base_ = ['./coco_detection.py', './coco_multiscale.py']

train_pipeline = [_base_.multiscale if step['type'] == 'Resize' else step for step in _base_.train_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
