# Trained at one size, tested at 0.75 to 2 times of it: where larger images need attention, who has what they need?
title = 'LaViT-nano, its twin and its rivals at sizes that they were not trained at, 30 classes of ImageNet'
metric, scale, digits = 'accuracy/top1', 1, 1
columns = dict(test_96='at 96x96', train='top-1 at 128x128', test_192='at 192x192', test_256='at 256x256')
seeds = [0, 1, 2]
reference = 'lavit'

_test = (
    'python tools/test.py {config} {run}/train/iter_1880.pth --work-dir {work_dir} '
    '--cfg-options "test_dataloader.dataset.pipeline.1.scale=(SIDE,SIDE)" {options}'
)
commands = dict(
    train='python tools/train.py {config} --work-dir {work_dir} --cfg-options randomness.seed={seed} {options}',
    **{f'test_{side}': _test.replace('SIDE', str(side)) for side in (96, 192, 256)},
)
_no_diag = 'configs/experiments/lavit_nano_no_diag_in30.py'
_later = 'model.backbone.type=mmlavit.analysis.controls.LaViTControl model.backbone.later='
names = dict(config='configs/experiments/lavit_nano_in30.py', options='')
arms = dict(
    lavit=dict(title='LaViT'),
    twin=dict(
        title='all layers vanilla (the twin)', names=dict(config='configs/experiments/lavit_vanilla_nano_in30.py')
    ),
    no_loss=dict(title='without diagonality loss', names=dict(config=_no_diag)),
    no_ar=dict(title='without attention residual', names=dict(options='model.backbone.attention_residual=False')),
    pool=dict(title='pooled keys', names=dict(options='model.backbone.key_reduction=pool')),
    none=dict(title='later layers: no attention', names=dict(config=_no_diag, options=_later + 'none')),
    uniform=dict(title='later layers: uniform attention', names=dict(config=_no_diag, options=_later + 'uniform')),
    shared=dict(
        title='later layers: scores shared, no transforms', names=dict(config=_no_diag, options=_later + 'shared')
    ),
)
