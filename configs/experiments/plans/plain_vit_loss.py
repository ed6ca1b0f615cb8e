# Does the diagonality loss help where the attention matters, and with what weight? 30 classes of ImageNet at 128x128.
title = 'The diagonality loss in a plain vision transformer with less attention, 30 classes of ImageNet'
metric, scale, digits = 'accuracy/top1', 1, 1
columns = dict(train='top-1 at 128x128', test_192='at 192x192')
seeds = [0, 1, 2]
reference = 'weight_0'

commands = dict(
    train='python tools/train.py {config} --work-dir {work_dir} --cfg-options randomness.seed={seed} {options}',
    test_192='python tools/test.py {config} {run}/train/iter_1880.pth --work-dir {work_dir} '
    '--cfg-options "test_dataloader.dataset.pipeline.1.scale=(192,192)"',
)
names = dict(config='configs/experiments/vit_small_less_loss_in30.py', options='')
arms = dict(
    weight_0=dict(title='without the loss', names=dict(config='configs/experiments/vit_small_less_in30.py')),
    weight_001=dict(title='weight 0.01', names=dict(options='custom_hooks.0.weight=0.01')),
    weight_01=dict(title='weight 0.1'),
    weight_1=dict(title='weight 1', names=dict(options='custom_hooks.0.weight=1')),
)
