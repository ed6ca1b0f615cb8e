# The transforms of less attention learn at a tenth of the rate, as in the configs of ImageNet.
_base_ = './fpn_lavit_nano_framed.py'

_slow = dict(lr_mult=0.1)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'.delta_psi': _slow, '.delta_theta': _slow}))
