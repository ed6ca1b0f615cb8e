# LaViT with the trunk of PVTv2-B2, for its weights.
_base_ = './lavit_s_in1k.py'

model = dict(backbone=dict(arch='pvt_v2_b2'))
