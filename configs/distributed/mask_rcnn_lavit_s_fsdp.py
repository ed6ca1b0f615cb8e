# Mask R-CNN, LaViT-S, 1x; parameters, gradients and optimizer state are sharded over the GPUs by FSDP.
_base_ = '../mask_rcnn_lavit_s.py'

runner_type = 'FlexibleRunner'
strategy = dict(
    type='mmlavit.engine.strategy.ResumableFSDPStrategy',
    # A unit of sharding is a block of the backbone.
    model_wrapper=dict(use_orig_params=True, auto_wrap_policy='mmlavit.engine.strategy.shard_blocks'),
    # Checkpoints are as those of one process: one file, for any number of GPUs and for tools/test.py.
    state_dict_cfg='full',
)
