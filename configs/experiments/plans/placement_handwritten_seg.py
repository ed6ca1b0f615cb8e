# Which layers should have less attention, in the segmentor of the demo? Its teacher is that of the plan
# `distill_handwritten_seg`, which has to run before (`--arms teacher`).
_base_ = './_base_/placement.py'

title = 'Less attention in other layers of a trained segmentor, handwritten scenes'
metric, scale, digits = 'mIoU', 1, 2
columns = dict(test='distilled', copied='copied')
names = dict(
    student='configs/handwritten/upernet_lavit_nano.py',
    twin='configs/experiments/upernet_vanilla_nano_handwritten.py',
    trained='work_dirs/experiments/distill_handwritten_seg/teacher/seed_0/train/iter_1600.pth',
    images='data/handwritten/images/train',
)
