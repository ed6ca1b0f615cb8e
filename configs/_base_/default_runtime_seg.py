# Segmentation counts iterations, not epochs, in its loop, its log and its checkpoints.
_base_ = './default_runtime.py'

default_scope = 'mmseg'

default_hooks = dict(
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=16000, max_keep_ckpts=1, save_best='mIoU'),
    visualization=dict(type='SegVisualizationHook'),
)
log_processor = dict(window_size=50, by_epoch=False)
visualizer = dict(type='SegLocalVisualizer', vis_backends=_base_.vis_backends)
