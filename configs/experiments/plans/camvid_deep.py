# A segmentor from the classifiers of the plan `classification_deep`, which has to run before.
title = 'UperNet on CamVid, its backbone a slim LaViT as deep as LaViT-S, its twin or a rival'
metric, scale, digits = 'mIoU', 1, 2
columns = dict(train='mIoU')
seeds = [0, 1]
reference = 'lavit'

_short = 'train_cfg.max_iters=400 train_cfg.val_interval=200 param_scheduler.1.end=400'
_small = 'default_hooks.checkpoint.save_optimizer=False default_hooks.checkpoint.save_param_scheduler=False'
_init = 'model.backbone.init_cfg.checkpoint=work_dirs/experiments/classification_deep/{arm}/seed_0/train/epoch_6.pth'
commands = dict(
    train='python tools/train.py {config} --work-dir {work_dir} '
    f'--cfg-options randomness.seed={{seed}} {_short} {_small} {_init} {{options}}'
)
_no_diag = 'configs/experiments/upernet_lavit_no_diag_deep_camvid.py'
_later = 'model.backbone.type=mmlavit.analysis.controls.LaViTControl model.backbone.later='
names = dict(options='')
arms = dict(
    lavit=dict(title='LaViT', names=dict(config='configs/experiments/upernet_lavit_deep_camvid.py')),
    twin=dict(
        title='all layers vanilla (the twin)', names=dict(config='configs/experiments/upernet_vanilla_deep_camvid.py')
    ),
    none=dict(title='later layers: no attention', names=dict(config=_no_diag, options=_later + 'none')),
    uniform=dict(title='later layers: uniform attention', names=dict(config=_no_diag, options=_later + 'uniform')),
)
