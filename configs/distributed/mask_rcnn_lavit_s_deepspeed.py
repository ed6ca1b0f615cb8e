# Mask R-CNN, LaViT-S, 1x; the optimizer's state is sharded over the GPUs by DeepSpeed's ZeRO, stage 1.
_base_ = '../mask_rcnn_lavit_s.py'

runner_type = 'FlexibleRunner'
strategy = dict(type='mmlavit.engine.strategy.SafeDeepSpeedStrategy', zero_optimization=dict(stage=1))
optim_wrapper = dict(type='DeepSpeedOptimWrapper')
# mmengine's DeepSpeed does not keep the place in the data.
exact_resume = False
