# What the weights of LaViT-nano are worth: CamVid.
_base_ = './_base_/weights.py'

title = 'UperNet on CamVid, from the weights of this repository and from scratch'
metric, scale, digits = 'mIoU', 1, 2
columns = dict(train='mIoU')
names = dict(config='configs/experiments/upernet_lavit_nano_camvid.py')
