# Do layers without convolutions need less attention? A plain vision transformer, 30 classes of ImageNet at 128x128.
title = 'A plain vision transformer with less attention in layers 4 to 7 of 8, and its rivals, 30 classes of ImageNet'
metric, scale, digits = 'accuracy/top1', 1, 1
columns = dict(train='top-1')
seeds = [0, 1, 2]
reference = 'less'

commands = dict(
    train='python tools/train.py {config} --work-dir {work_dir} --cfg-options randomness.seed={seed} {options}'
)
_later = 'model.backbone.type=mmlavit.analysis.controls.WithLessAttentionControl model.backbone.later='
names = dict(config='configs/experiments/vit_small_less_in30.py', options='')
arms = dict(
    less=dict(title='less attention'),
    full=dict(title='full attention in all layers', names=dict(config='configs/experiments/vit_small_in30.py')),
    shared=dict(title='later layers: scores shared, no transforms', names=dict(options=_later + 'shared')),
    uniform=dict(title='later layers: uniform attention', names=dict(options=_later + 'uniform')),
    none=dict(title='later layers: no attention', names=dict(options=_later + 'none')),
)
