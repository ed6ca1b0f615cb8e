# LaViT-S, without attention residuals between stages.
_base_ = './lavit_s_in1k.py'

model = dict(backbone=dict(attention_residual=False))
