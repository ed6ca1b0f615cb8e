# Distillation of classifiers that are trained at 128x128 and tested at twice that size, too.
_base_ = './distillation.py'

metric, scale, digits = 'accuracy/top1', 1, 1
columns = dict(test='top-1 at 128x128', test_256='top-1 at 256x256')
_options = {name: '' if '--cfg-options' in arm.commands.test else '--cfg-options' for name, arm in _base_.arms.items()}
arms = {
    name: dict(
        commands=dict(
            test_256=f'{arm.commands.test} {_options[name]} "test_dataloader.dataset.pipeline.1.scale=(256,256)"'
        )
    )
    for name, arm in _base_.arms.items()
}
