# Distillation without labels: a plain vision transformer into itself with less attention in half of its layers.
_base_ = './_base_/distillation.py'

title = 'Less attention in a trained plain vision transformer, 30 classes of ImageNet'
metric, scale, digits = 'accuracy/top1', 1, 1
columns = dict(test='top-1')
names = dict(
    student='configs/experiments/vit_small_less_in30.py',
    twin='configs/experiments/vit_small_in30.py',
    trained='{root}/teacher/seed_0/train/iter_1880.pth',
    images='data/in30/train',
    teacher_iters=1880,
    iters=188,
    control='model.backbone.type=mmlavit.analysis.controls.WithLessAttentionControl',
    short='train_cfg.max_iters=188 train_cfg.val_interval=188 param_scheduler.0.end=16 param_scheduler.1.begin=16 '
    'param_scheduler.1.end=188 default_hooks.checkpoint.interval=188',
)
