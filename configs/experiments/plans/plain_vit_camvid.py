# As the plan `plain_vit`, where every position has to be told apart: segmentation of street scenes.
title = 'FCN on a plain vision transformer with less attention in layers 4 to 7 of 8, and its rivals, CamVid'
metric, scale, digits = 'mIoU', 1, 2
columns = dict(train='mIoU')
seeds = [0, 1, 2]
reference = 'less'

commands = dict(
    train='python tools/train.py {config} --work-dir {work_dir} --cfg-options randomness.seed={seed} {options}'
)
_later = 'model.backbone.type=mmlavit.analysis.controls.WithLessAttentionControl model.backbone.later='
names = dict(config='configs/experiments/fcn_vit_small_less_camvid.py', options='')
arms = dict(
    less=dict(title='less attention'),
    full=dict(title='full attention in all layers', names=dict(config='configs/experiments/fcn_vit_small_camvid.py')),
    shared=dict(title='later layers: scores shared, no transforms', names=dict(options=_later + 'shared')),
    fixed=dict(title='later layers: learned scores, the same for all images', names=dict(options=_later + 'fixed')),
    uniform=dict(title='later layers: uniform attention', names=dict(options=_later + 'uniform')),
    none=dict(title='later layers: no attention', names=dict(options=_later + 'none')),
)
