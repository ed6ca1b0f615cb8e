# Distillation where copying costs points: a classifier that is used on images twice as large as it was trained on.
_base_ = './_base_/distillation_sizes.py'

title = 'Less attention in a trained classifier, 30 classes of ImageNet'
names = dict(
    student='configs/experiments/lavit_nano_in30.py',
    twin='configs/experiments/lavit_vanilla_nano_in30.py',
    trained='{root}/teacher/seed_0/train/iter_1880.pth',
    images='data/in30/train',
    teacher_iters=1880,
    iters=188,
    options='train_dataloader.batch_size=32 train_dataloader.dataset.pipeline.1.scale=256',
    short='train_cfg.max_iters=188 train_cfg.val_interval=188 param_scheduler.0.end=16 param_scheduler.1.begin=16 '
    'param_scheduler.1.end=188 default_hooks.checkpoint.interval=188',
)
