_base_ = './default_runtime.py'

default_scope = 'mmpretrain'

default_hooks = dict(
    logger=dict(type='LoggerHook', interval=100),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1, save_best='accuracy/top1'),
    visualization=dict(type='VisualizationHook'),
)
log_processor = dict(window_size=100)
visualizer = dict(type='UniversalVisualizer', vis_backends=_base_.vis_backends)
