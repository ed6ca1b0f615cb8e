# What the weights of LaViT-nano are worth: blood cells.
_base_ = './_base_/weights.py'

title = 'RetinaNet on blood cells, from the weights of this repository and from scratch'
metric, scale, digits = 'coco/bbox_mAP', 100, 1
columns = dict(train='box AP')
names = dict(config='configs/experiments/retinanet_lavit_nano_bccd.py')
