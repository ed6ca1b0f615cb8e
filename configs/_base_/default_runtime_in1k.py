# ImageNet-1k: what is tested and saved is a running average of the weights (EMA), over a tenth of the steps so far and
# in the end with DeiT's decay of 0.99996; so a short training on other data gets a short average.
_base_ = './default_runtime_cls.py'

custom_hooks = [
    *_base_.custom_hooks,
    dict(
        type='EMAHook',
        ema_type='MomentumAnnealingEMA',
        gamma=10,
        momentum=4e-5,
        priority='ABOVE_NORMAL',
    ),
]
