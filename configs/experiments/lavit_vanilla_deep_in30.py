# The vanilla twin: full attention in all layers, no attention residuals, and so no diagonality loss.
_base_ = './lavit_no_diag_deep_in30.py'

model = dict(backbone=dict(num_va_layers=(3, 4, 6, 3), attention_residual=False))
