# Distillation where the attention that is replaced matters. Its teacher is the twin of the plan `framed_digit`, seed 0,
# which has to run before.
_base_ = './_base_/distillation.py'

title = 'Less attention in a trained segmentor that needs context, the framed digit'
metric, scale, digits = 'mIoU', 1, 2
columns = dict(test='mIoU')
names = dict(
    student='configs/experiments/fpn_lavit_nano_framed.py',
    twin='configs/experiments/fpn_vanilla_nano_framed.py',
    trained='work_dirs/experiments/framed_digit/twin/seed_0/train/iter_1600.pth',
    images='data/framed_train',
    teacher_iters=1600,
    iters=160,
    short='train_cfg.max_iters=160 train_cfg.val_interval=160 param_scheduler.0.end=10 param_scheduler.1.begin=10 '
    'param_scheduler.1.end=160 default_hooks.checkpoint.interval=160',
)
arms = dict(
    teacher=dict(commands=dict(_delete_=True, test=_base_.test_teacher)),
    longer=dict(
        title='copied, fitted, distilled for 480 iterations without labels',
        needs=['teacher'],
        commands=dict(
            distill=_base_.distill + '--iters 480 --fit-images 32', test=_base_.test + 'distill/iter_480.pth'
        ),
    ),
    # Transforms at a tenth of the learning rate.
    slow=dict(
        title='copied, fitted, distilled for {iters} iterations, transforms at a tenth of the learning rate',
        names=dict(student='configs/experiments/fpn_lavit_slow_nano_framed.py'),
        **{key: _base_.arms.distilled[key] for key in ('needs', 'commands')},
    ),
    slow_unfitted=dict(
        title='the same, not fitted',
        names=dict(student='configs/experiments/fpn_lavit_slow_nano_framed.py'),
        **{key: _base_.arms.unfitted[key] for key in ('needs', 'commands')},
    ),
)
