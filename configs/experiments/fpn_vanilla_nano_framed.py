# The vanilla twin: full attention in all layers, no attention residuals.
_base_ = './fpn_lavit_nano_framed.py'

model = dict(backbone=dict(num_va_layers=(2, 2, 3, 2), attention_residual=False))
custom_hooks = [hook for hook in _base_.custom_hooks if hook['type'] != 'DiagonalityLossHook']
