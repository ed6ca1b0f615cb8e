# Which layers of a plain vision transformer should have less attention? 30 classes of ImageNet at 128x128.
title = 'Less attention in other layers of a plain vision transformer of 8 layers, 30 classes of ImageNet'
metric, scale, digits = 'accuracy/top1', 1, 1
columns = dict(train='top-1 at 128x128', test_192='at 192x192')
seeds = [0, 1, 2]
reference = 'last'

commands = dict(
    train='python tools/train.py configs/experiments/vit_small_less_in30.py --work-dir {work_dir} '
    '--cfg-options randomness.seed={seed} {options}',
    test_192='python tools/test.py configs/experiments/vit_small_less_in30.py {run}/train/iter_1880.pth '
    '--work-dir {work_dir} --cfg-options "test_dataloader.dataset.pipeline.1.scale=(192,192)" {options}',
)
names = dict(options='')
arms = dict(
    last=dict(title='4 to 7, the last half'),
    alternate=dict(title='1, 3, 5, 7', names=dict(options='model.backbone.layers=[1,3,5,7]')),
    middle=dict(title='2 to 5', names=dict(options='model.backbone.layers=[2,3,4,5]')),
    all_but_first=dict(title='1 to 7', names=dict(options='model.backbone.layers=[1,2,3,4,5,6,7]')),
)
