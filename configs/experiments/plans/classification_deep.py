# As the plan `classification`, of a network as deep as LaViT-S: 16 layers, 11 of them with less attention.
title = 'A slim LaViT as deep as LaViT-S, its twin and its rivals, 275 classes of ImageNet'
metric, scale, digits = 'accuracy/top1', 1, 1
columns = dict(train='top-1 at 128x128', test_256='at 256x256')
seeds = [0, 1]
reference = 'lavit'
names = dict(
    lavit='configs/experiments/lavit_deep_in275.py',
    no_diag='configs/experiments/lavit_no_diag_deep_in275.py',
    twin='configs/experiments/lavit_vanilla_deep_in275.py',
    small='default_hooks.checkpoint.interval=6 default_hooks.checkpoint.save_optimizer=False '
    'default_hooks.checkpoint.save_param_scheduler=False',
    large='"test_dataloader.dataset.pipeline.1.scale=(256,256)"',
    control='model.backbone.type=mmlavit.analysis.controls.LaViTControl model.backbone.later',
)

_train = 'python tools/train.py CONFIG --amp --work-dir {work_dir} --cfg-options randomness.seed={seed} {small} '
_test = 'python tools/test.py CONFIG {run}/train/epoch_6.pth --work-dir {work_dir} --cfg-options {large} '
# Each arm: its row, its config, and options for training and tests.
_rows = dict(
    lavit=('LaViT', '{lavit}', ''),
    twin=('all layers vanilla (the twin)', '{twin}', ''),
    uniform=('later layers: uniform attention', '{no_diag}', '{control}=uniform'),
    none=('later layers: no attention', '{no_diag}', '{control}=none'),
    shared=('later layers: scores shared, no transforms', '{no_diag}', '{control}=shared'),
    no_ar=('without attention residual', '{lavit}', 'model.backbone.attention_residual=False'),
)
arms = {
    name: dict(
        title=title,
        commands=dict(
            train=_train.replace('CONFIG', config) + options,
            test_256=_test.replace('CONFIG', config) + options,
        ),
    )
    for name, (title, config, options) in _rows.items()
}
