# No attention in the later layers.
_base_ = './fpn_lavit_nano_framed.py'

model = dict(backbone=dict(type='mmlavit.analysis.controls.LaViTControl', later='none'))
# The diagonality loss acts on transforms, which these layers do not have.
custom_hooks = [hook for hook in _base_.custom_hooks if hook['type'] != 'DiagonalityLossHook']
