# The same with less attention in layers 4 to 7.
_base_ = './vit_small_in30.py'

model = dict(
    backbone=dict(_delete_=True, type='WithLessAttention', backbone=_base_.model.backbone, layers=[4, 5, 6, 7])
)
