# Distillation without labels from a detector whose backbone is no transformer, here mmdet's ResNet: RetinaNet on blood
# cells. The student takes over the head alone, since the layers of the neck have other channels.
_base_ = './distill_pvt_bccd.py'

title = 'A LaViT from a trained detector with ResNet, blood cells'
names = dict(
    student='configs/experiments/retinanet_lavit_nano_bccd.py',
    twin='configs/experiments/retinanet_resnet_nano_bccd.py',
    iters=225,
    short='train_cfg.max_iters=225 train_cfg.val_interval=225 param_scheduler.1.end=225 '
    'default_hooks.checkpoint.interval=225',
)
arms = dict(
    _delete_=True,
    teacher=dict(
        title='teacher, {teacher_iters} iterations with labels',
        seeds=[0],
        commands=dict(
            train='python tools/train.py {twin} --work-dir {work_dir} --cfg-options ' + _base_.length,
            test='python tools/test.py {twin} --work-dir {work_dir} {trained}',
        ),
    ),
    distilled=dict(
        title='distilled for {iters} iterations without labels',
        needs=['teacher'],
        commands=dict(
            distill='python tools/distill.py {student} {twin} {trained} --images {images} --work-dir {work_dir} '
            '--iters {iters} --cfg-options randomness.seed={seed}',
            test='python tools/test.py {student} --work-dir {work_dir} {run}/distill/iter_{iters}.pth',
        ),
    ),
    scratch=dict(
        title='from scratch, {iters} iterations with labels',
        commands=dict(
            train='python tools/train.py {student} --work-dir {work_dir} --cfg-options randomness.seed={seed} {short}',
            test='python tools/test.py {student} --work-dir {work_dir} {run}/train/iter_{iters}.pth',
        ),
    ),
)
