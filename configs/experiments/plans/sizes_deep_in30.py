# As the plan `sizes_in30`, of a network as deep as LaViT-S: 16 layers, 11 of them with less attention.
_base_ = './sizes_in30.py'

title = 'A slim LaViT as deep as LaViT-S, its twin and its rivals at sizes that they were not trained at, 30 classes'
_no_diag = 'configs/experiments/lavit_no_diag_deep_in30.py'
names = dict(config='configs/experiments/lavit_deep_in30.py')
arms = dict(
    twin=dict(names=dict(config='configs/experiments/lavit_vanilla_deep_in30.py')),
    **{name: dict(names=dict(config=_no_diag)) for name in ('no_loss', 'none', 'uniform', 'shared')},
)
