# The same with less attention in layers 4 to 7.
_base_ = './fcn_vit_small_camvid.py'

model = dict(
    backbone=dict(_delete_=True, type='WithLessAttention', backbone=_base_.model.backbone, layers=[4, 5, 6, 7])
)
