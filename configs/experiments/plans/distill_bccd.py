# Distillation without labels: RetinaNet on blood cells.
_base_ = './_base_/distillation.py'

title = 'Less attention in a trained detector, blood cells'
metric, scale, digits = 'coco/bbox_mAP', 100, 1
columns = dict(test='box AP')
names = dict(
    student='configs/experiments/retinanet_lavit_nano_bccd.py',
    twin='configs/experiments/retinanet_vanilla_nano_bccd.py',
    trained='{root}/teacher/seed_0/train/iter_800.pth',
    images='data/bccd_train',
    teacher_iters=800,
    iters=80,
    short='train_cfg.max_iters=80 train_cfg.val_interval=80 param_scheduler.0.end=4 param_scheduler.1.begin=4 '
    'param_scheduler.1.end=80 default_hooks.checkpoint.interval=80',
)
