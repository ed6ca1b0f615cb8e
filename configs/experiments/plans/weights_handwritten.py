# What the weights of LaViT-nano are worth: the detector of the demo, on strokes instead of photographs.
_base_ = './_base_/weights.py'

title = 'Mask R-CNN on handwritten scenes, from the weights of this repository and from scratch'
metric, scale, digits = 'coco/bbox_mAP', 100, 1
columns = dict(train='box AP')
names = dict(config='configs/handwritten/mask_rcnn_lavit_nano.py')
# By epochs of 100 iterations, as the demo.
short = 'train_cfg.max_epochs=2 train_cfg.val_interval=1 param_scheduler.1.end=2'
long = 'train_cfg.max_epochs=6 train_cfg.val_interval=1 param_scheduler.1.end=6'
arms = dict(
    scratch=dict(title='from scratch, 200 iterations', commands=dict(train=_base_.train + short)),
    weights=dict(title='from our weights, 200 iterations', commands=dict(train=_base_.train + short + ' {init}')),
    long=dict(title='from scratch, 600 iterations', commands=dict(train=_base_.train + long)),
    long_weights=dict(title='from our weights, 600 iterations', commands=dict(train=_base_.train + long + ' {init}')),
)
