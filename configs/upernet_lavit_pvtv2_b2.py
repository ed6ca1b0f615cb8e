# UperNet, LaViT with the trunk of PVTv2-B2, for its weights.
_base_ = './upernet_lavit_s.py'

model = dict(backbone=dict(arch='pvt_v2_b2'))
