# Every run: LaViT and its hook are registered, and the hooks below work in all three toolboxes.
custom_imports = dict(imports=['mmlavit'], allow_failed_imports=False)

custom_hooks = [
    dict(type='DiagonalityLossHook', weight=0.1),
    # Stops before a loss or gradient that is no number reaches the weights; action='skip' leaves such steps out.
    dict(type='CheckNumbersHook'),
]

env_cfg = dict(dist_cfg=dict(backend='nccl'))
randomness = dict(seed=0)

# Scalars and images as files, and for `tensorboard --logdir work_dirs`.
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
