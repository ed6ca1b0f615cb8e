# Distillation where copying costs points: a classifier that is used on images twice as large as it was trained on.
_base_ = './_base_/distillation.py'

title = 'Less attention in a trained classifier, 30 classes of ImageNet'
metric, scale, digits = 'accuracy/top1', 1, 1
columns = dict(test='top-1 at 128x128', test_256='top-1 at 256x256')
names = dict(
    student='configs/experiments/lavit_nano_in30.py',
    twin='configs/experiments/lavit_vanilla_nano_in30.py',
    images='data/in30/train',
    last='iter_1880.pth',
    teacher_iters=1880,
    iters=188,
    options='train_dataloader.batch_size=32 train_dataloader.dataset.pipeline.1.scale=256',
    short='train_cfg.max_iters=188 train_cfg.val_interval=188 param_scheduler.0.end=16 param_scheduler.1.begin=16 '
    'param_scheduler.1.end=188 default_hooks.checkpoint.interval=188',
)
large = ' --cfg-options "test_dataloader.dataset.pipeline.1.scale=(256,256)"'
arms = {name: dict(commands=dict(test_256=arm['commands']['test'] + large)) for name, arm in _base_.arms.items()}
