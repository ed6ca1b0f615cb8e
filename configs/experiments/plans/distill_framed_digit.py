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
    options='',
    short='train_cfg.max_iters=160 train_cfg.val_interval=160 param_scheduler.0.end=10 param_scheduler.1.begin=10 '
    'param_scheduler.1.end=160 default_hooks.checkpoint.interval=160',
)
_trained = _base_.distill.replace('{root}/teacher/seed_0/train/{last}', '{trained}')
# Would the same training teach a student as much that has something cheaper in these layers?
_control = 'model.backbone.type=mmlavit.analysis.controls.LaViTControl model.backbone.later='  # and what
arms = dict(
    teacher=dict(
        commands=dict(_delete_=True, test='python tools/test.py {twin} {trained} --work-dir {work_dir}'),
    ),
    copied=dict(commands=dict(distill=_trained + '1 --fit-images 0')),
    fitted=dict(commands=dict(distill=_trained + '1 --fit-images 32')),
    distilled=dict(commands=dict(distill=_trained + '{iters} --fit-images 32')),
    unfitted=dict(commands=dict(distill=_trained + '{iters} --fit-images 0')),
    longer=dict(
        title='copied, fitted, distilled for 480 iterations without labels',
        commands=dict(distill=_trained + '480 --fit-images 32', test=_base_.test + 'distill/iter_480.pth'),
    ),
    slow=dict(
        title='copied, fitted, distilled for {iters} iterations, transforms at a tenth of the learning rate',
        needs=['teacher'],
        names=dict(student='configs/experiments/fpn_lavit_slow_nano_framed.py'),
        commands=dict(distill=_trained + '{iters} --fit-images 32', test=_base_.test + 'distill/iter_{iters}.pth'),
    ),
    slow_unfitted=dict(
        title='the same, not fitted',
        needs=['teacher'],
        names=dict(student='configs/experiments/fpn_lavit_slow_nano_framed.py'),
        commands=dict(distill=_trained + '{iters} --fit-images 0', test=_base_.test + 'distill/iter_{iters}.pth'),
    ),
    **{
        f'distilled_{later}': dict(
            title=f'distilled for {{iters}} iterations with {title} in the place of less attention',
            needs=['teacher'],
            commands=dict(
                distill=f'{_trained} {{iters}} --fit-images 0'.replace('--iters ', f'{_control}{later} --iters'),
                test=f'{_base_.test}distill/iter_{{iters}}.pth --cfg-options {_control}{later}',
            ),
        )
        for later, title in dict(shared='shared scores', uniform='uniform attention', none='no attention').items()
    },
)
