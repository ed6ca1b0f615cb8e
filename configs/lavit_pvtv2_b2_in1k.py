# LaViT with the trunk of PVTv2-B2: trained from scratch, or from converted weights.
_base_ = './lavit_s_in1k.py'

model = dict(backbone=dict(arch='pvt_v2_b2', init_cfg=dict(type='Pretrained', checkpoint=None, prefix='backbone.')))
