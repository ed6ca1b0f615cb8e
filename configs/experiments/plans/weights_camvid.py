# What the weights of LaViT-nano are worth: CamVid.
title = 'UperNet on CamVid, from the weights of this repository and from scratch'
metric, scale, digits = 'mIoU', 1, 2
seeds = [0, 1, 2]
reference = 'scratch'
columns = dict(train='mIoU')

train = (
    'python tools/train.py configs/experiments/upernet_lavit_nano_camvid.py --work-dir {work_dir} --cfg-options '
    'randomness.seed={seed} train_cfg.max_iters=150 train_cfg.val_interval=75 param_scheduler.1.end=150'
)
weights = ' model.backbone.init_cfg.checkpoint=mmlavit://lavit_nano_in275'
arms = dict(
    scratch=dict(title='from scratch', commands=dict(train=train)),
    weights=dict(title='from the weights', commands=dict(train=train + weights)),
)
