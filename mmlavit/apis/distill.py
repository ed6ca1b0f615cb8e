"""Distillation without labels: the config of a run."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope

from mmlavit.datasets.unlabelled import remove_labels
from mmlavit.errors import UserError
from mmlavit.models import LaViT, WithLessAttention
from mmlavit.utils.checkpoint import load_checkpoint, require_checkpoint
from mmlavit.utils.config_files import merge_options
from mmlavit.utils.config_types import model_config, type_name, without_initialisation

from .inference import find_meta

# The diagonality loss is added to a model's own losses, of which there are none. The average of weights: the
# learning rate falls to zero, and what is saved must be the student itself.
_REPLACED_HOOKS = ('DiagonalityLossHook', 'EMAHook')

# What of a config is set here, so that options for it have to be merged again.
_SET_HERE = ('default_hooks', 'find_unused_parameters', 'log_processor', 'param_scheduler', 'train_cfg')
# What there is no choice of: all images of the folder, in random order.
_FIXED = ('train_dataloader.dataset', 'train_dataloader.sampler', 'train_dataloader.batch_sampler')


def distillation_config(
    student: Config,
    teacher: Config,
    checkpoint: str,
    images: str,
    *,
    iters: int,
    layerwise_iters: int = 0,
    fit_images: int = 0,
    lr: float | None = None,
) -> Config:
    """Turn the config of a student into that of a distillation.

    Model, optimizer, batch and transforms of the images stay the student's. There are no labels and so no validation,
    no average of weights and no diagonality loss. The learning rate warms up over a twentieth of the iterations and
    falls to zero by a cosine. The checkpoints fit the student's config.

    Args:
        student (Config): Config of a classifier, detector or segmentor with a LaViT as backbone.
        teacher (Config): Config of the teacher, a model of any of the three toolboxes.
        checkpoint (str): The teacher's weights.
        images (str): Folder of images, searched with all folders in it.
        iters (int): Iterations.
        layerwise_iters (int): How many of them the attention layers learn alone.
        fit_images (int): Images that the transforms are fitted to; 0: they keep their initial values.
        lr (float, optional): Highest learning rate; None: the student's.

    Returns:
        Config: For ``mmlavit.engine.run``.

    Raises:
        UserError: If the student has no LaViT, a control that is to be fitted, or a strategy that shares out its
            weights, or a number is out of range.
    """
    kind = student.model.get('backbone', {}).get('type')
    backbone = MODELS.get(kind) if isinstance(kind, str) else kind
    if not (isinstance(backbone, type) and issubclass(backbone, (LaViT, WithLessAttention))):
        raise UserError(f"model.backbone of the student's config is {kind}; expected LaViT or WithLessAttention")
    if 'later' in student.model.backbone and (fit_images or layerwise_iters):
        raise UserError(
            f"model.backbone of the student's config is {kind}, a control, which has no transforms to fit and no "
            'layers that learn alone; leave out --fit-images and --layerwise-iters'
        )
    strategy = type_name(student.get('strategy') or {})
    if strategy not in ('', 'SingleDeviceStrategy', 'DDPStrategy'):
        raise UserError(
            f"the student's config has strategy {strategy}, which hands out parts of the weights before the teacher's "
            'can be copied; distil with DDPStrategy, or without a strategy'
        )
    if iters < 1 or not 0 <= layerwise_iters <= iters:
        raise UserError(f'expected 0 <= layerwise_iters <= iters and iters > 0, got {layerwise_iters} and {iters}')
    if fit_images < 0 or (lr is not None and lr <= 0):
        raise UserError(f'expected fit_images >= 0 and lr > 0, got {fit_images} and {lr}')
    require_checkpoint(checkpoint)
    cfg = copy.deepcopy(student)
    for split in ('val', 'test'):
        for part in ('dataloader', 'cfg', 'evaluator'):
            cfg[f'{split}_{part}'] = None
    cfg.train_cfg = ConfigDict(type='IterBasedTrainLoop', max_iters=iters)
    if cfg.get('runner_type') == 'FlexibleRunner':
        # mmengine's Runner does what DDPStrategy does, and knows of heads that are left out of what is compared.
        more = sorted((cfg.get('strategy') or {}).keys() - {'type'})
        if more:
            raise UserError(
                f"the student's strategy has {', '.join(more)}; distillation uses mmengine's Runner, so leave out "
                'runner_type and strategy, and set in the config itself what Runner reads there, such as sync_bn'
            )
        for key in ('runner_type', 'strategy'):
            cfg.pop(key, None)
    cfg.find_unused_parameters = True
    # Batches are padded as before, but there are no masks to pad. Those of mmpretrain, a dict, mix images with labels.
    for holder in (cfg.model, cfg):
        augments = (holder.get('data_preprocessor') or {}).get('batch_augments') or []
        for augment in augments if isinstance(augments, Sequence) else []:
            augment.update({key: False for key in ('pad_mask', 'pad_seg') if key in augment})
    loader = cfg.train_dataloader
    dataset = _find_dataset(loader.dataset)
    loader.dataset = ConfigDict(
        type='mmlavit.datasets.unlabelled.UnlabelledImages',
        data_root=images,
        pipeline=remove_labels(dataset['pipeline']),
        metainfo=_find_names(dataset, checkpoint, student.get('default_scope')),
    )
    loader.sampler = ConfigDict(type='InfiniteSampler', shuffle=True)
    loader.batch_sampler = None  # those of the toolboxes ask annotation files for shapes
    if lr is not None:
        cfg.optim_wrapper.optimizer.lr = lr
        cfg.pop('auto_scale_lr', None)  # it is for this batch
    warmup = iters // 20 if iters >= 40 else 0  # of one step, mmengine's never ends
    cfg.param_scheduler = [dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=warmup, end=iters)]
    if warmup:
        cfg.param_scheduler.insert(0, dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warmup))
    kept = [hook for hook in cfg.get('custom_hooks') or [] if type_name(hook) not in _REPLACED_HOOKS]
    distillation = ConfigDict(
        type='DistillationHook',
        teacher=without_initialisation(model_config(teacher)),
        checkpoint=checkpoint,
        scope=teacher.get('default_scope'),
        layerwise_iters=layerwise_iters,
        fit_images=fit_images,
    )
    cfg.custom_hooks = [*kept, distillation]
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    hooks.checkpoint = ConfigDict(type='CheckpointHook', by_epoch=False, interval=max(1, iters // 10), max_keep_ckpts=1)
    hooks.logger = ConfigDict(type='LoggerHook', interval=min(50, max(1, iters // 10)), log_metric_by_epoch=False)
    cfg.log_processor = ConfigDict(window_size=50, by_epoch=False)
    return cfg


def keep_options(cfg: Config, options: Mapping[str, Any]) -> Config:
    """Merge the user's options again where :func:`distillation_config` has set something of its own.

    Args:
        cfg (Config): What it gave for a student's config that has the options already.
        options (Mapping[str, Any]): Dotted keys and their values.

    Returns:
        Config: A copy with them.

    Raises:
        UserError: If an option is for validation or test, which there are none of, or for which images are read and in
            which order, or leads nowhere.
    """
    for key in options:
        if key.startswith(('val_', 'test_', 'tta_')):
            raise UserError(
                f'--cfg-options {key}: distillation has no validation or test; run tools/test.py afterwards'
            )
        if key.startswith(_FIXED) and 'pipeline' not in key.split('.'):
            raise UserError(f'--cfg-options {key}: distillation reads all images of --images in random order')
    return merge_options(cfg, {key: value for key, value in options.items() if key.split('.')[0] in _SET_HERE})


def _find_names(dataset: Mapping[str, Any], checkpoint: str, scope: str | None) -> dict[str, Any]:
    """Find names and colours of classes, which images do not have: the student's, or else the teacher's."""
    with DefaultScope.overwrite_default_scope(scope):
        found = find_meta({}, dataset)
        if not found.get('classes'):
            found = find_meta(load_checkpoint(checkpoint), dataset)
    return {key: found[key] for key in ('classes', 'palette') if found.get(key) is not None}


def _find_dataset(dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    """Find the dataset with the pipeline, looking through wrappers such as ``RepeatDataset``."""
    while 'dataset' in dataset:
        if 'pipeline' in dataset:
            raise UserError(
                f"{dataset['type']} of the student's train_dataloader has transforms of its own, such as Mosaic, which "
                'mix images with their labels; distillation needs a dataset without'
            )
        dataset = dataset['dataset']
    if 'pipeline' not in dataset:
        raise UserError("the student's train_dataloader has no single pipeline, which distillation needs")
    if type_name(dataset) == 'DecodedImages':
        raise UserError(
            "DecodedImages of the student's train_dataloader gives whole batches, not single images, as distillation "
            'needs; give the student a train_dataloader and a data_preprocessor such as those of '
            'configs/experiments/lavit_nano_in30.py'
        )
    return dataset
