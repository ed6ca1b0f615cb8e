# UperNet with LaViT-nano without attention residuals on CamVid.
_base_ = './upernet_lavit_nano_camvid.py'

model = dict(backbone=dict(attention_residual=False))
