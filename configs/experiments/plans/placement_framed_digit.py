# Which layers of a trained pyramid network should have less attention, in a segmentor that needs context? The twin of
# the plan `framed_digit`, seed 0, which has to run before, is converted with different numbers of vanilla layers in a
# stage (LaViT-nano has stages of 2, 2, 3 and 2 layers) and distilled.
title = 'Less attention in other layers of a trained segmentor that needs context, the framed digit'
metric, scale, digits = 'mIoU', 1, 2
columns = dict(test='distilled', copied='copied')
seeds = [0, 1, 2]
reference = 'teacher'
names = dict(
    student='configs/experiments/fpn_lavit_nano_framed.py',
    twin='configs/experiments/fpn_vanilla_nano_framed.py',
    trained='work_dirs/experiments/framed_digit/twin/seed_0/train/iter_1600.pth',
    images='data/framed_train',
    iters=160,
)

_layers = '"model.backbone.num_va_layers=[{layers}]"'
_test = 'python tools/test.py {student} --work-dir {work_dir} {run}/distill/'
commands = dict(
    distill='python tools/distill.py {student} {twin} {trained} --images {images} --work-dir {work_dir} '
    f'--iters {{iters}} --cfg-options randomness.seed={{seed}} {_layers}',
    copied=f'{_test}start.pth --cfg-options {_layers}',
    test=f'{_test}iter_{{iters}}.pth --cfg-options {_layers}',
)
arms = dict(
    teacher=dict(
        title='teacher, full attention in all layers',
        seeds=[0],
        commands=dict(test='python tools/test.py {twin} --work-dir {work_dir} {trained}'),
    ),
    **{
        name: dict(title=f'{title} ({layers})', names=dict(layers=layers))
        for name, title, layers in (
            ('all_but_first', '5 layers: all but the first of each stage', '1,1,1,1'),
            ('last_of_stages', '4 layers: the last of each stage', '1,1,2,1'),
            ('stages_3_4', '3 layers: stages 3 and 4', '2,2,1,1'),
            ('stages_1_2', '2 layers: stages 1 and 2', '1,1,3,2'),
            ('stage_1', '1 layer: stage 1', '1,2,3,2'),
            ('stage_2', '1 layer: stage 2', '2,1,3,2'),
            ('stage_3', '2 layers: stage 3', '2,2,1,2'),
            ('stage_4', '1 layer: stage 4', '2,2,3,1'),
        )
    },
)
