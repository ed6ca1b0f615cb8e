# Does less attention hold up in a detector, against full attention, none, and backbones of the same size?
title = 'RetinaNet on blood cells: LaViT-nano, its twin, no attention in its later layers, PVTv2 and ResNet of its size'
metric, scale, digits = 'coco/bbox_mAP', 100, 1
columns = dict(train='box AP')
seeds = [0, 1, 2]
reference = 'lavit'

_length = 'train_cfg.max_iters=450 train_cfg.val_interval=150 param_scheduler.1.end=450'
commands = dict(
    train='python tools/train.py configs/experiments/retinanet_{config}_bccd.py --work-dir {work_dir} '
    f'--cfg-options randomness.seed={{seed}} {_length}'
)
arms = dict(
    lavit=dict(title='LaViT', names=dict(config='lavit_nano')),
    twin=dict(title='all layers vanilla (the twin)', names=dict(config='vanilla_nano')),
    none=dict(title='later layers: no attention', names=dict(config='none_nano')),
    pvt_v2=dict(title='PVTv2 (mmdet)', names=dict(config='pvt_v2_nano')),
    resnet=dict(title='ResNet (mmdet)', names=dict(config='resnet_nano')),
)
