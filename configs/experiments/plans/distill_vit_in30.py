# Distillation without labels: a plain vision transformer into itself with less attention in half of its layers.
_base_ = './_base_/distillation.py'

title = 'Less attention in a trained plain vision transformer, 30 classes of ImageNet'
metric, scale, digits = 'accuracy/top1', 1, 1
columns = dict(test='top-1')
names = dict(
    student='configs/experiments/vit_small_less_in30.py',
    twin='configs/experiments/vit_small_in30.py',
    images='data/in30/train',
    last='iter_1880.pth',
    teacher_iters=1880,
    iters=188,
    options='',
    short='train_cfg.max_iters=188 train_cfg.val_interval=188 param_scheduler.0.end=16 param_scheduler.1.begin=16 '
    'param_scheduler.1.end=188 default_hooks.checkpoint.interval=188',
)
# Would the same training teach a student as much that has something cheaper in these layers?
control = 'model.backbone.type=mmlavit.analysis.controls.WithLessAttentionControl model.backbone.later='  # and what
arms = {
    f'distilled_{later}': dict(
        title=f'the same with {title} in the place of less attention',
        needs=['teacher'],
        commands=dict(
            distill=f'{_base_.distill} {{iters}} --fit-images 0'.replace('--iters ', f'{control}{later} --iters'),
            test=f'{_base_.test}distill/iter_{{iters}}.pth --cfg-options {control}{later}',
        ),
    )
    for later, title in dict(shared='shared scores', uniform='uniform attention', none='no attention').items()
}
