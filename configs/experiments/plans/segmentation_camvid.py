# As the plan `detection_bccd`, in a segmentor, and besides LaViT without attention residuals.
title = 'UperNet on street scenes: LaViT-nano, its twin, no attention in its later layers, PVTv2 and ResNet of its size'
metric, scale, digits = 'mIoU', 1, 2
columns = dict(train='mIoU')
seeds = [0, 1, 2]
reference = 'lavit'

commands = dict(
    train='python tools/train.py configs/experiments/upernet_{config}_camvid.py --work-dir {work_dir} '
    '--cfg-options randomness.seed={seed} train_cfg.val_interval=400'
)
arms = dict(
    lavit=dict(title='LaViT', names=dict(config='lavit_nano')),
    twin=dict(title='all layers vanilla (the twin)', names=dict(config='vanilla_nano')),
    no_ar=dict(title='LaViT without attention residuals', names=dict(config='lavit_no_ar_nano')),
    none=dict(title='later layers: no attention', names=dict(config='none_nano')),
    pvt_v2=dict(title='PVTv2 (mmdet)', names=dict(config='pvt_v2_nano')),
    resnet=dict(title='ResNet (mmseg)', names=dict(config='resnet_nano')),
)
