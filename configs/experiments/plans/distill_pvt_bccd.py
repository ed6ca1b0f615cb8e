# Distillation without labels from a detector with mmdet's PVTv2: RetinaNet on blood cells.
_base_ = './_base_/distillation.py'

title = 'A LaViT from a trained detector with PVTv2, blood cells'
metric, scale, digits = 'coco/bbox_mAP', 100, 1
columns = dict(test='box AP')
names = dict(
    student='configs/experiments/retinanet_lavit_pvt_nano_bccd.py',
    twin='configs/experiments/retinanet_pvt_v2_nano_bccd.py',
    trained='{root}/teacher/seed_0/train/iter_450.pth',
    images='data/bccd_train',
    teacher_iters=450,
    iters=45,
    short='train_cfg.max_iters=45 train_cfg.val_interval=45 param_scheduler.0.end=2 param_scheduler.1.begin=2 '
    'param_scheduler.1.end=45 default_hooks.checkpoint.interval=45',
)
# As in the plan `detection_bccd`.
length = 'train_cfg.max_iters=450 train_cfg.val_interval=150 param_scheduler.1.end=450'
arms = dict(
    teacher=dict(commands=dict(train='python tools/train.py {twin} --work-dir {work_dir} --cfg-options ' + length))
)
