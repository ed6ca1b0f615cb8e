# Every run: LaViT and its hook are registered, and the two hooks below work in all three toolboxes.
custom_imports = dict(imports=['mmlavit'], allow_failed_imports=False)

custom_hooks = [
    # DDP of mmengine does not broadcast buffers: without this hook each rank would validate with
    # its own BatchNorm statistics (the backbone's attention residual has a BatchNorm).
    dict(type='SyncBuffersHook'),
    dict(type='DiagonalityLossHook', weight=0.1),
]

env_cfg = dict(dist_cfg=dict(backend='nccl'))
randomness = dict(seed=0)

# Scalars and pictures as files, and for `tensorboard --logdir work_dirs`.
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
