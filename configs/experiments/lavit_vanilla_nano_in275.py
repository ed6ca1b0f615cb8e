# The vanilla twin: full attention in all layers, no attention residuals, and so no diagonality loss.
_base_ = './lavit_nano_no_diag_in275.py'

model = dict(backbone=dict(num_va_layers=(2, 2, 3, 2), attention_residual=False))
