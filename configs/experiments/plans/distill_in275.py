# Distillation of a deep classifier. Its teacher is the twin of the plan `classification_deep`, which has to run before.
_base_ = './_base_/distillation.py'

title = 'Less attention in a trained classifier as deep as LaViT-S, 275 classes of ImageNet'
metric, scale, digits = 'accuracy/top1', 1, 1
columns = dict(test='top-1 at 128x128', test_256='top-1 at 256x256')
small = (
    'default_hooks.checkpoint.interval=158 default_hooks.checkpoint.save_optimizer=False '
    'default_hooks.checkpoint.save_param_scheduler=False'
)
names = dict(
    student='configs/experiments/lavit_deep_in275_files.py',
    twin='configs/experiments/lavit_vanilla_deep_in275.py',
    short_student='configs/experiments/lavit_deep_in275_short.py',
    trained='work_dirs/experiments/classification_deep/twin/seed_0/train/epoch_6.pth',
    images='data/in275/train',
    teacher_iters=1584,
    iters=158,
    options=small,
)
large = ' --cfg-options "test_dataloader.dataset.pipeline.1.scale=(256,256)"'
_tests = {name: arm['commands']['test'] for name, arm in _base_.arms.items()}
_tests['teacher'] = 'python tools/test.py {twin} {trained} --work-dir {work_dir}'
_trained = _base_.distill.replace('{root}/teacher/seed_0/train/{last}', '{trained}')
arms = {name: dict(commands=dict(test=test, test_256=test + large)) for name, test in _tests.items()}
arms['teacher']['commands']['_delete_'] = True
arms['copied']['commands']['distill'] = _trained + '1 --fit-images 0'
arms['fitted']['commands']['distill'] = _trained + '1'
arms['distilled']['commands']['distill'] = _trained + '{iters}'
arms['scratch']['commands']['train'] = (
    'python tools/train.py {short_student} --amp --work-dir {work_dir} --cfg-options randomness.seed={seed} {options}'
)
