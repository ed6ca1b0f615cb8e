_base_ = './default_runtime.py'

default_scope = 'mmdet'

default_hooks = dict(
    logger=dict(type='LoggerHook', interval=50),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1, save_best='coco/bbox_mAP'),
    visualization=dict(type='DetVisualizationHook'),
)
log_processor = dict(window_size=50)
visualizer = dict(type='DetLocalVisualizer', vis_backends=_base_.vis_backends)
