# LaViT-S, the vanilla twin: full attention in all layers, no attention residuals.
_base_ = './lavit_s_in1k.py'

model = dict(backbone=dict(num_va_layers=(3, 4, 6, 3), attention_residual=False))
# The loss is about less-attention layers, and there are none.
custom_hooks = [hook for hook in _base_.custom_hooks if hook['type'] != 'DiagonalityLossHook']
