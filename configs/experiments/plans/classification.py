# Does less attention do anything, and would something cheaper do as well? 275 classes of ImageNet at 128x128.
title = 'LaViT-nano, its parts, its twin and its rivals, 275 classes of ImageNet'
metric, scale, digits = 'accuracy/top1', 1, 1
columns = dict(train='top-1 at 128x128', test_256='at 256x256')
seeds = [0, 1, 2]
reference = 'lavit'

_short = 'train_cfg.max_epochs=8 train_cfg.val_interval=8 param_scheduler.1.end=8'
commands = dict(
    train='python tools/train.py {config} --amp --work-dir {work_dir} '
    f'--cfg-options randomness.seed={{seed}} {_short} {{options}}',
    test_256='python tools/test.py {config} {run}/train/epoch_8.pth --work-dir {work_dir} '
    '--cfg-options "test_dataloader.dataset.pipeline.1.scale=(256,256)" {options}',
)
_no_diag = 'configs/experiments/lavit_nano_no_diag_in275.py'
_later = 'model.backbone.type=mmlavit.analysis.controls.LaViTControl model.backbone.later='
names = dict(config='configs/experiments/lavit_nano_in275.py', options='')
arms = dict(
    lavit=dict(title='LaViT'),
    twin=dict(
        title='all layers vanilla (the twin)', names=dict(config='configs/experiments/lavit_vanilla_nano_in275.py')
    ),
    pool=dict(title='pooled keys', names=dict(options='model.backbone.key_reduction=pool')),
    no_ar=dict(title='without attention residual', names=dict(options='model.backbone.attention_residual=False')),
    no_loss=dict(title='without diagonality loss', names=dict(config=_no_diag)),
    loss_1=dict(title='diagonality loss of weight 1', names=dict(options='custom_hooks.0.weight=1')),
    shared=dict(
        title='later layers: scores shared, no transforms', names=dict(config=_no_diag, options=_later + 'shared')
    ),
    uniform=dict(title='later layers: uniform attention', names=dict(config=_no_diag, options=_later + 'uniform')),
    none=dict(title='later layers: no attention', names=dict(config=_no_diag, options=_later + 'none')),
)
