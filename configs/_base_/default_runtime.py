# Every run: LaViT and its hook are registered, and the two hooks below work in all three toolboxes.
custom_imports = dict(imports=['mmlavit'], allow_failed_imports=False)

custom_hooks = [
    # Each process normalises by its own images (the backbone's attention residuals have BatchNorms): without this
    # hook the processes would validate, average (EMA) and save statistics of their own.
    dict(type='SyncStatisticsHook'),
    dict(type='DiagonalityLossHook', weight=0.1),
]

env_cfg = dict(dist_cfg=dict(backend='nccl'))
randomness = dict(seed=0)

# Scalars and images as files, and for `tensorboard --logdir work_dirs`.
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
