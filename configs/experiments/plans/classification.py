# Does less attention do anything, and would something cheaper do as well? 275 classes of ImageNet at 128x128.
title = 'LaViT-nano, its parts, its twin and its rivals, 275 classes of ImageNet'
metric, scale, digits = 'accuracy/top1', 1, 1
columns = dict(train='top-1 at 128x128', test_256='at 256x256')
seeds = [0, 1, 2]
reference = 'lavit'
names = dict(
    lavit='configs/experiments/lavit_nano_in275.py',
    no_diag='configs/experiments/lavit_nano_no_diag_in275.py',
    twin='configs/experiments/lavit_vanilla_nano_in275.py',
    epochs=8,
    short='train_cfg.max_epochs=8 train_cfg.val_interval=8 param_scheduler.1.end=8',
    large='"test_dataloader.dataset.pipeline.1.scale=(256,256)"',
    control='model.backbone.type=mmlavit.analysis.controls.LaViTControl model.backbone.later',
)

_train = 'python tools/train.py CONFIG --amp --work-dir {work_dir} --cfg-options randomness.seed={seed} {short} '
_test = 'python tools/test.py CONFIG {run}/train/epoch_{epochs}.pth --work-dir {work_dir} --cfg-options '
# Each arm: its row, its config, and options for training and tests.
_rows = dict(
    lavit=('LaViT', '{lavit}', ''),
    twin=('all layers vanilla (the twin)', '{twin}', ''),
    pool=('pooled keys', '{lavit}', 'model.backbone.key_reduction=pool'),
    no_ar=('without attention residual', '{lavit}', 'model.backbone.attention_residual=False'),
    no_loss=('without diagonality loss', '{no_diag}', ''),
    loss_1=('diagonality loss of weight 1', '{lavit}', 'custom_hooks.0.weight=1'),
    shared=('later layers: scores shared, no transforms', '{no_diag}', '{control}=shared'),
    uniform=('later layers: uniform attention', '{no_diag}', '{control}=uniform'),
    none=('later layers: no attention', '{no_diag}', '{control}=none'),
)
arms = {
    name: dict(
        title=title,
        commands=dict(
            train=_train.replace('CONFIG', config) + options,
            test_256=_test.replace('CONFIG', config) + '{large} ' + options,
        ),
    )
    for name, (title, config, options) in _rows.items()
}
