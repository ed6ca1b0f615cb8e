# Scores whose mean over the keys is zero, which changes what less attention makes of them.
_base_ = './fpn_lavit_nano_framed.py'

model = dict(backbone=dict(type='mmlavit.analysis.centred.CentredLaViT'))
