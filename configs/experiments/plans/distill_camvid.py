# Distillation without labels: UperNet on street scenes.
_base_ = './_base_/distillation.py'

title = 'Less attention in a trained segmentor, CamVid'
metric, scale, digits = 'mIoU', 1, 2
columns = dict(test='mIoU')
names = dict(
    student='configs/experiments/upernet_lavit_nano_camvid.py',
    twin='configs/experiments/upernet_vanilla_nano_camvid.py',
    trained='{root}/teacher/seed_0/train/iter_800.pth',
    images='data/camvid/images/train',
    teacher_iters=800,
    iters=80,
    short='train_cfg.max_iters=80 train_cfg.val_interval=80 param_scheduler.0.end=4 param_scheduler.1.begin=4 '
    'param_scheduler.1.end=80 default_hooks.checkpoint.interval=80',
)
