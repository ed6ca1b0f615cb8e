# Distillation on more classes and images than `distill_in30` has. Its teacher comes with this repository.
_base_ = './_base_/distillation_sizes.py'

title = 'Less attention in a trained classifier, 275 classes of ImageNet'
names = dict(
    student='configs/experiments/lavit_nano_in275_files.py',
    twin='configs/experiments/lavit_vanilla_nano_in275.py',
    short_student='configs/experiments/lavit_nano_in275_short.py',
    trained='mmlavit://lavit_vanilla_nano_in275',
    images='data/in275/train',
    teacher_iters=3696,
    iters=369,
    amp='--amp',
    options='default_hooks.checkpoint.interval=369',
)
arms = dict(
    teacher=dict(commands=dict(_delete_=True, **{key: _base_.arms.teacher.commands[key] for key in _base_.columns})),
    scratch=dict(
        commands=dict(
            train='python tools/train.py {short_student} {amp} --work-dir {work_dir} '
            '--cfg-options randomness.seed={seed} {options}'
        )
    ),
)
