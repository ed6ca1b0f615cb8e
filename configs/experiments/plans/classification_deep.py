# As the plan `classification`, of a network as deep as LaViT-S: 16 layers, 11 of them with less attention.
title = 'A slim LaViT as deep as LaViT-S, its twin and its rivals, 275 classes of ImageNet'
metric, scale, digits = 'accuracy/top1', 1, 1
columns = dict(train='top-1 at 128x128', test_256='at 256x256')
seeds = [0, 1]
reference = 'lavit'

_small = (
    'default_hooks.checkpoint.interval=6 default_hooks.checkpoint.save_optimizer=False '
    'default_hooks.checkpoint.save_param_scheduler=False'
)
commands = dict(
    train='python tools/train.py {config} --amp --work-dir {work_dir} '
    f'--cfg-options randomness.seed={{seed}} {_small} {{options}}',
    test_256='python tools/test.py {config} {run}/train/epoch_6.pth --work-dir {work_dir} '
    '--cfg-options "test_dataloader.dataset.pipeline.1.scale=(256,256)" {options}',
)
_no_diag = 'configs/experiments/lavit_no_diag_deep_in275.py'
_later = 'model.backbone.type=mmlavit.analysis.controls.LaViTControl model.backbone.later='
names = dict(config='configs/experiments/lavit_deep_in275.py', options='')
arms = dict(
    lavit=dict(title='LaViT'),
    twin=dict(
        title='all layers vanilla (the twin)', names=dict(config='configs/experiments/lavit_vanilla_deep_in275.py')
    ),
    uniform=dict(title='later layers: uniform attention', names=dict(config=_no_diag, options=_later + 'uniform')),
    none=dict(title='later layers: no attention', names=dict(config=_no_diag, options=_later + 'none')),
    shared=dict(
        title='later layers: scores shared, no transforms', names=dict(config=_no_diag, options=_later + 'shared')
    ),
    no_ar=dict(title='without attention residual', names=dict(options='model.backbone.attention_residual=False')),
)
