# Trained at one size, tested at 0.75 to 2 times of it: where larger images need attention, who has what they need?
title = 'LaViT-nano, its twin and its rivals at sizes that they were not trained at, 30 classes of ImageNet'
metric, scale, digits = 'accuracy/top1', 1, 1
columns = dict(test_96='at 96x96', train='top-1 at 128x128', test_192='at 192x192', test_256='at 256x256')
seeds = [0, 1, 2]
reference = 'lavit'
names = dict(
    lavit='configs/experiments/lavit_nano_in30.py',
    no_diag='configs/experiments/lavit_nano_no_diag_in30.py',
    twin='configs/experiments/lavit_vanilla_nano_in30.py',
    control='model.backbone.type=mmlavit.analysis.controls.LaViTControl model.backbone.later',
)

_train = 'python tools/train.py CONFIG --work-dir {work_dir} --cfg-options randomness.seed={seed} '
_test = (
    'python tools/test.py CONFIG {run}/train/iter_1880.pth --work-dir {work_dir} '
    '--cfg-options "test_dataloader.dataset.pipeline.1.scale=(SIDE,SIDE)" '
)
# Each arm: its row, its config, and options.
_rows = dict(
    lavit=('LaViT', '{lavit}', ''),
    twin=('all layers vanilla (the twin)', '{twin}', ''),
    none=('later layers: no attention', '{no_diag}', '{control}=none'),
    uniform=('later layers: uniform attention', '{no_diag}', '{control}=uniform'),
    shared=('later layers: scores shared, no transforms', '{no_diag}', '{control}=shared'),
)
arms = {
    name: dict(
        title=title,
        commands=dict(
            train=_train.replace('CONFIG', config) + options,
            **{
                f'test_{side}': _test.replace('CONFIG', config).replace('SIDE', str(side)) + options
                for side in (96, 192, 256)
            },
        ),
    )
    for name, (title, config, options) in _rows.items()
}
