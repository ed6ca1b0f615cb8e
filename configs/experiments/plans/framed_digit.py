# A task that needs context: does less attention do what full attention does there?
title = 'Finding the digits that are the same as a framed one: LaViT-nano, its twin and controls'
metric, scale, digits = 'mIoU', 1, 2
columns = dict(train='mIoU')
seeds = [0, 1, 2]
reference = 'lavit'

# All start from the twin of the demo's segmentor, the teacher of the plan `distill_handwritten_seg`.
names = dict(start='work_dirs/experiments/distill_handwritten_seg/teacher/seed_0/train/iter_1600.pth')
_train = (
    'python tools/train.py configs/experiments/fpn_{config}_nano_framed.py --work-dir {work_dir} '
    '--cfg-options randomness.seed={seed} model.backbone.init_cfg.checkpoint={start}'
)
commands = dict(train=_train)
arms = dict(
    lavit=dict(title='LaViT', names=dict(config='lavit')),
    twin=dict(title='all layers vanilla (the twin)', names=dict(config='vanilla')),
    none=dict(title='later layers: no attention', names=dict(config='none')),
    uniform=dict(
        title='later layers: uniform attention',
        names=dict(config='none'),
        commands=dict(train=_train + ' model.backbone.later=uniform'),
    ),
    shared=dict(
        title='later layers: scores shared, no transforms',
        names=dict(config='none'),
        commands=dict(train=_train + ' model.backbone.later=shared'),
    ),
    no_loss=dict(title='LaViT without the diagonality loss', names=dict(config='lavit_no_diag')),
    centred=dict(title='LaViT with centred scores', names=dict(config='centred')),
)
