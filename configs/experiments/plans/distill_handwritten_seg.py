# Distillation without labels: the segmentor of the demo.
_base_ = './_base_/distillation.py'

title = 'Less attention in a trained segmentor, handwritten scenes'
metric, scale, digits = 'mIoU', 1, 2
columns = dict(test='mIoU')
names = dict(
    student='configs/handwritten/upernet_lavit_nano.py',
    twin='configs/experiments/upernet_vanilla_nano_handwritten.py',
    trained='{root}/teacher/seed_0/train/iter_1600.pth',
    images='data/handwritten/images/train',
    teacher_iters=1600,
    iters=160,
    short='train_cfg.max_iters=160 train_cfg.val_interval=160 param_scheduler.0.end=10 param_scheduler.1.begin=10 '
    'param_scheduler.1.end=160 default_hooks.checkpoint.interval=160',
)
