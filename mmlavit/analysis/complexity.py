"""Complexity of the whole model of a config."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmlavit.environment import check_environment
from mmlavit.errors import UserError
from mmlavit.utils.config_types import without_initialisation
from mmlavit.utils.toolbox import find_scope

from .breakdown import lavit_roles
from .flops import Complexity, Roles, count_complexity

DEFAULT_SHAPES = {'mmpretrain': (224, 224), 'mmdet': (800, 1344), 'mmseg': (512, 512)}
"""Image height and width that each toolbox's models are usually counted at."""


def model_complexity(cfg: Config, shape: tuple[int, int], roles: Roles = lavit_roles) -> tuple[Complexity, list[str]]:
    """Build the model of a config, without weights, and count one forward of one image.

    The forward is ``mode='tensor'``: up to the outputs of the heads, without post-processing. RoI heads get as many
    regions as the test settings keep. Nothing is computed, unless the model needs numbers to go on.

    Args:
        cfg (Config): Config with ``default_scope`` and ``model``.
        shape (tuple[int, int]): Height and width of the image.
        roles (Roles): Finds the roles of operations; default: those of a LaViT.

    Returns:
        tuple[Complexity, list[str]]: Parameters and multiply-adds, and what a reader has to know about how they were
        counted, in sentences.

    Raises:
        UserError: If the config is for none of the toolboxes, or its model refuses an image of this shape.
        EnvironmentProblem: If its toolbox is not installed.
    """
    if 'model' not in cfg:
        raise UserError(f'{cfg.filename} has no model')
    scope = find_scope(cfg)
    check_environment(scope)
    image_shape = (_in_channels(cfg.model), *shape)
    # Each build of its own copy: some detectors write into their config.
    with DefaultScope.overwrite_default_scope(scope):
        model_cfg = without_initialisation(cfg.model)
        model = MODELS.build(deepcopy(model_cfg)).eval()
        try:
            return _count(model.to('meta'), scope, image_shape, roles)
        except Exception:
            pass  # an operator without a form for this device, or a number that has to be known
        model = MODELS.build(deepcopy(model_cfg)).eval()
        try:
            complexity, notes = _count(model, scope, image_shape, roles)
        except UserError as error:  # an operator that is not there
            raise UserError(f'{cfg.filename} cannot be counted: {error}') from error
        except Exception as error:  # an image too small, or a model that upstream gave no mode='tensor'
            reason = ' '.join(f'{type(error).__name__}: {error}'.split())
            raise UserError(
                f'{cfg.filename} cannot be counted at {shape[0]}x{shape[1]}: {reason}; its parts must fit each other '
                '(such as in_channels of the neck), and the image must not be too small'
            ) from error
    return complexity, [*notes, 'The model was run: a blank image, random weights, and what these led to.']


def _in_channels(model: Mapping[str, Any]) -> int:
    """Channels of the images that a model takes; some backbones have another inside."""
    backbone = model.get('backbone') or {}
    return backbone.get('in_channels') or (_in_channels(backbone) if 'backbone' in backbone else 3)


def _count(
    model: nn.Module, scope: str, image_shape: tuple[int, int, int], roles: Roles
) -> tuple[Complexity, list[str]]:
    image = next(model.parameters()).new_zeros(1, *image_shape)
    unseen = {type(module).__name__ for module in model.modules() if type(module).__module__.startswith('mmcv.ops')}
    notes = []
    if _has_plain_roi_heads(model):
        proposals, masks = model.test_cfg.rpn.max_per_img, model.test_cfg.rcnn.max_per_img
        complexity = count_complexity(model, lambda: _run_two_stages(model, image, proposals, masks), roles)
        unseen.discard('RoIAlign')
        found = f'{proposals} proposals' + (f', {masks} masks' if model.roi_head.with_mask else '')
        notes.append(f'RoI heads: {found}, the most that the test settings keep.')
    else:
        samples = _mmdet_samples(image_shape[1:]) if scope == 'mmdet' else None
        complexity = count_complexity(model, lambda: model(image, samples, mode='tensor'), roles)
    if unseen:
        notes.append(f'Not counted: the operators of mmcv in {", ".join(sorted(unseen))}.')
    return complexity, notes


def _mmdet_samples(shape: tuple[int, int]) -> list:
    from mmdet.structures import DetDataSample

    return [
        DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, batch_input_shape=shape, scale_factor=(1, 1)))
    ]


def _has_plain_roi_heads(model: nn.Module) -> bool:
    """Whether box and mask heads are run on regions one after the other, as by Mask R-CNN and Cascade Mask R-CNN."""
    roi_head = getattr(model, 'roi_head', None)
    if roi_head is None:
        return False
    from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
    from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor, SingleRoIExtractor

    extractors = [module for module in roi_head.modules() if isinstance(module, BaseRoIExtractor)]
    plain = all(type(extractor) is SingleRoIExtractor for extractor in extractors)  # others may compute something
    return plain and type(roi_head) in (StandardRoIHead, CascadeRoIHead) and model.with_rpn


def _run_two_stages(model: nn.Module, image: Tensor, num_proposals: int, num_masks: int) -> None:
    """Run a two-stage detector on regions of which only the number is known: which ones, weights would decide."""
    features = model.extract_feat(image)
    model.rpn_head(features)
    if getattr(model, 'with_semantic_head', False):  # of a panoptic detector
        model.semantic_head(features)
    roi_head = model.roi_head
    stages = [(roi_head.bbox_roi_extractor, roi_head.bbox_head, num_proposals)]
    if roi_head.with_mask:
        stages.append((roi_head.mask_roi_extractor, roi_head.mask_head, num_masks))
    for extractors, heads, count in stages:
        if not isinstance(heads, nn.ModuleList):  # a cascade has lists
            extractors, heads = [extractors], [heads]
        for extractor, head in zip(extractors, heads, strict=True):
            regions = image.new_zeros(count, extractor.out_channels, *extractor.roi_layers[0].output_size)
            head(roi_head.shared_head(regions) if roi_head.with_shared_head else regions)
