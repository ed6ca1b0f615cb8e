# Distillation on more classes and images than `distill_in30` has. Its teacher comes with this repository.
_base_ = './_base_/distillation.py'

title = 'Less attention in a trained classifier, 275 classes of ImageNet'
metric, scale, digits = 'accuracy/top1', 1, 1
columns = dict(test='top-1 at 128x128', test_256='top-1 at 256x256')
names = dict(
    student='configs/experiments/lavit_nano_in275_files.py',
    twin='configs/experiments/lavit_vanilla_nano_in275.py',
    short_student='configs/experiments/lavit_nano_in275_short.py',
    trained='mmlavit://lavit_vanilla_nano_in275',
    images='data/in275/train',
    teacher_iters=3696,
    iters=369,
    options='default_hooks.checkpoint.interval=369',
)
large = ' --cfg-options "test_dataloader.dataset.pipeline.1.scale=(256,256)"'
_tests = {name: arm['commands']['test'] for name, arm in _base_.arms.items()}
_tests['teacher'] = 'python tools/test.py {twin} {trained} --work-dir {work_dir}'
_trained = _base_.distill.replace('{root}/teacher/seed_0/train/{last}', '{trained}')
arms = {name: dict(commands=dict(test=test, test_256=test + large)) for name, test in _tests.items()}
arms['teacher']['commands']['_delete_'] = True
arms['copied']['commands']['distill'] = _trained + '1 --fit-images 0'
arms['fitted']['commands']['distill'] = _trained + '1 --fit-images 32'
arms['distilled']['commands']['distill'] = _trained + '{iters} --amp --fit-images 32'
arms['unfitted']['commands']['distill'] = _trained + '{iters} --amp --fit-images 0'
arms['scratch']['commands']['train'] = (
    'python tools/train.py {short_student} --amp --work-dir {work_dir} --cfg-options randomness.seed={seed} {options}'
)
