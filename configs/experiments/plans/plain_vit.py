# Do layers without convolutions need less attention? A plain vision transformer, 30 classes of ImageNet at 128x128.
title = 'A plain vision transformer with less attention in layers 4 to 7 of 8, and its rivals, 30 classes of ImageNet'
metric, scale, digits = 'accuracy/top1', 1, 1
columns = dict(train='top-1')
seeds = [0, 1, 2]
reference = 'less'
names = dict(
    full='configs/experiments/vit_small_in30.py',
    less='configs/experiments/vit_small_less_in30.py',
    control='model.backbone.type=mmlavit.analysis.controls.WithLessAttentionControl model.backbone.later',
)

_train = 'python tools/train.py CONFIG --work-dir {work_dir} --cfg-options randomness.seed={seed} '
# Each arm: its row, its config, and options.
_rows = dict(
    less=('less attention', '{less}', ''),
    full=('full attention in all layers', '{full}', ''),
    shared=('later layers: scores shared, no transforms', '{less}', '{control}=shared'),
    uniform=('later layers: uniform attention', '{less}', '{control}=uniform'),
    none=('later layers: no attention', '{less}', '{control}=none'),
)
arms = {
    name: dict(title=title, commands=dict(train=_train.replace('CONFIG', config) + options))
    for name, (title, config, options) in _rows.items()
}
