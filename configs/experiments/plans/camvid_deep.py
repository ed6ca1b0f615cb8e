# A segmentor from the classifiers of the plan `classification_deep`, which has to run before.
title = 'UperNet on CamVid, its backbone a slim LaViT as deep as LaViT-S, its twin or a rival'
metric, scale, digits = 'mIoU', 1, 2
columns = dict(train='mIoU')
seeds = [0, 1]
reference = 'lavit'
names = dict(
    lavit='configs/experiments/upernet_lavit_deep_camvid.py',
    no_diag='configs/experiments/upernet_lavit_no_diag_deep_camvid.py',
    twin='configs/experiments/upernet_vanilla_deep_camvid.py',
    short='train_cfg.max_iters=400 train_cfg.val_interval=200 param_scheduler.1.end=400',
    small='default_hooks.checkpoint.save_optimizer=False default_hooks.checkpoint.save_param_scheduler=False',
    init='model.backbone.init_cfg.checkpoint=work_dirs/experiments/classification_deep',
    control='model.backbone.type=mmlavit.analysis.controls.LaViTControl model.backbone.later',
)

_train = 'python tools/train.py CONFIG --work-dir {work_dir} --cfg-options randomness.seed={seed} {short} {small} '
# Each arm: its row, its config, and options.
_rows = dict(
    lavit=('LaViT', '{lavit}', ''),
    twin=('all layers vanilla (the twin)', '{twin}', ''),
    none=('later layers: no attention', '{no_diag}', '{control}=none'),
    uniform=('later layers: uniform attention', '{no_diag}', '{control}=uniform'),
)
arms = {
    name: dict(
        title=title,
        commands=dict(
            train=_train.replace('CONFIG', config) + '{init}/' + name + '/seed_0/train/epoch_6.pth ' + options
        ),
    )
    for name, (title, config, options) in _rows.items()
}
