# What the weights of LaViT-T are worth: CamVid.
_base_ = './weights_camvid.py'

title = 'UperNet with LaViT-T on CamVid, from the weights of this repository and from scratch'
names = dict(
    config='configs/experiments/upernet_lavit_tiny_camvid.py',
    init='model.backbone.init_cfg.checkpoint=mmlavit://lavit_tiny_in275',
)
