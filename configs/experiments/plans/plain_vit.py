# Do layers without convolutions need less attention? A plain vision transformer, 30 classes of ImageNet at 128x128.
title = 'A plain vision transformer with less attention in layers 4 to 7 of 8, and its rivals, 30 classes of ImageNet'
metric, scale, digits = 'accuracy/top1', 1, 1
columns = dict(test_96='at 96x96', train='top-1 at 128x128', test_192='at 192x192', test_256='at 256x256')
seeds = [0, 1, 2]
reference = 'less'

_test = (
    'python tools/test.py {config} {run}/train/iter_1880.pth --work-dir {work_dir} '
    '--cfg-options "test_dataloader.dataset.pipeline.1.scale=(SIDE,SIDE)" {options}'
)
commands = dict(
    train='python tools/train.py {config} --work-dir {work_dir} --cfg-options randomness.seed={seed} {options}',
    **{f'test_{side}': _test.replace('SIDE', str(side)) for side in (96, 192, 256)},
)
_later = 'model.backbone.type=mmlavit.analysis.controls.WithLessAttentionControl model.backbone.later='
names = dict(config='configs/experiments/vit_small_less_in30.py', options='')
arms = dict(
    less=dict(title='less attention'),
    full=dict(title='full attention in all layers', names=dict(config='configs/experiments/vit_small_in30.py')),
    shared=dict(title='later layers: scores shared, no transforms', names=dict(options=_later + 'shared')),
    fixed=dict(title='later layers: learned scores, the same for all images', names=dict(options=_later + 'fixed')),
    biased=dict(title='later layers: full attention with learned scores added', names=dict(options=_later + 'biased')),
    uniform=dict(title='later layers: uniform attention', names=dict(options=_later + 'uniform')),
    none=dict(title='later layers: no attention', names=dict(options=_later + 'none')),
)
