# Which layers should have less attention, in a segmentor that needs context? Its teacher is the twin of the plan
# `framed_digit`, seed 0, which has to run before.
_base_ = './_base_/placement.py'

title = 'Less attention in other layers of a trained segmentor that needs context, the framed digit'
metric, scale, digits = 'mIoU', 1, 2
columns = dict(test='distilled', copied='copied')
names = dict(
    student='configs/experiments/fpn_lavit_nano_framed.py',
    twin='configs/experiments/fpn_vanilla_nano_framed.py',
    trained='work_dirs/experiments/framed_digit/twin/seed_0/train/iter_1600.pth',
    images='data/framed_train',
)
