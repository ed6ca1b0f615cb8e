"""Whole models as ONNX files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn
from torch.export import Dim

from mmlavit.deployment.models import build_graph
from mmlavit.deployment.onnx import OPSETS, write_onnx
from mmlavit.deployment.pipeline import describe_pipeline, find_test_dataset
from mmlavit.errors import UserError, is_full_disk
from mmlavit.models.arch import STRIDES
from mmlavit.utils.checkpoint import find_checkpoint, find_shards
from mmlavit.utils.config_files import load_config
from mmlavit.utils.local_files import expand_home, require_folder
from mmlavit.utils.toolbox import TASKS
from mmlavit.version import __version__
from mmlavit_serve.runtimes import METADATA

from .inference import build_model

_LARGEST = 16384  # side of an image; products of larger ones could leave 64 bits
_EXAMPLE = (170, 250)  # neither equal nor multiples of 32, so that nothing is taken for a constant


def export_onnx(
    cfg: Config | str | os.PathLike,
    checkpoint: str | os.PathLike,
    out_file: str | os.PathLike,
    shape: tuple[int, int] | None = None,
    opset: int = 20,
) -> Path:
    """Export the model of a config, with its pre- and post-processing, as an ONNX file.

    The graph takes ``images`` of shape (B, H, W, 3), uint8, in the order blue, green, red; resizing is the caller's, or
    that of ``mmlavit_serve.Predictor``. B is free for classifiers and segmentors and 1 for detectors. Outputs:

    * classification: ``scores`` (B, classes), probabilities.
    * detection: ``boxes`` (N, 4) as x1, y1, x2, y2 in pixels of the input, ``scores`` (N,), ``labels`` (N,), highest
      score first, and ``masks`` (N, s, s), probabilities inside the boxes, where the model has them.
    * segmentation: ``labels`` (B, h, w) at the height and width that the second input, ``size`` (2,), asks for.

    Args:
        cfg (Config or str): Config, or its file.
        checkpoint (str or Path): Weights: a file, ``mmlavit://NAME`` or an address of the internet.
        out_file (str or Path): The file, ending in .onnx.
        shape (tuple[int, int], optional): Height and width of all images; None: any to 16384, from one pixel more than
            the coarsest stride of the model.
        opset (int): Version of ONNX's operators, 18 to 20.

    Returns:
        Path: The file.

    Raises:
        UserError: If a package is missing, or the model has no form as a graph; the message names the part.
    """
    out_file = expand_home(out_file)
    if out_file.suffix != '.onnx' or out_file.is_dir():
        raise UserError(f'{out_file} is no file ending in .onnx')
    if opset not in OPSETS:
        raise UserError(f'opset is {opset}, expected {OPSETS[0]} to {OPSETS[-1]}')
    if shape is not None and min(shape) < 1:
        raise UserError(f'shape is {shape}, expected a height and a width above 0')
    if not isinstance(cfg, Config):
        cfg = load_config(os.fspath(cfg))
    name = cfg.filename or 'the config'
    file = find_checkpoint(checkpoint)
    require_folder(out_file.parent, '--out')
    built = build_model(cfg, str(file), 'cpu', 0.0)
    # Where sizes are symbols, grids of one row or column would be a case of their own.
    sides = [_coarsest_stride(built.model) + 1, _LARGEST]
    try:
        graph = build_graph(built.model, built.scope)
    except AttributeError as error:  # a model that lacks what those of its toolbox have
        raise UserError(f'{name} cannot be exported: {error}') from error
    metadata = _describe(cfg, built.scope, built.model, built.meta, file)
    # How many masks there are is known before they are put into the image, so here they are counted then.
    memory = built.memory if built.scope == 'mmseg' else built.memory._replace(image=0.0)
    metadata.update(sides=None if shape else sides, memory=list(memory))
    height, width = shape or (max(side, sides[0] + 11 * (place + 1)) for place, side in enumerate(_EXAMPLE))
    batched = built.scope != 'mmdet'
    arguments = {'images': torch.zeros(2 if batched else 1, height, width, 3, dtype=torch.uint8)}
    sizes = {0: Dim('batch', min=1, max=1024)} if batched else {}
    if shape is None:
        sizes.update({axis: Dim(name, min=sides[0], max=sides[1]) for axis, name in ((1, 'height'), (2, 'width'))})
    dynamic = {'images': sizes}
    if built.scope == 'mmseg':
        arguments['size'] = torch.tensor([height, width])
        dynamic['size'] = None
    try:
        write_onnx(
            graph,
            arguments,
            out_file,
            outputs=list(graph.outputs),
            dynamic_shapes=dynamic,
            opset=opset,
            metadata={METADATA: json.dumps(metadata)},
        )
    except UserError:
        raise
    except Exception as error:  # torch's own classes for what it cannot trace are many
        if is_full_disk(error):
            raise
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
        raise UserError(f'{name} cannot be exported: {reason}') from error
    return out_file


def _coarsest_stride(model: nn.Module) -> int:
    """Stride of the coarsest map that a model makes: that of the backbone, or of a detector's last level."""
    dense_head = getattr(model, 'rpn_head', None) or getattr(model, 'bbox_head', None)
    generator = getattr(dense_head, 'prior_generator', None)
    return max(STRIDES[-1], *(max(stride) for stride in generator.strides)) if generator else STRIDES[-1]


def _describe(cfg: Config, scope: str, model: nn.Module, meta: Mapping[str, Any], checkpoint: Path) -> dict[str, Any]:
    """Collect what a user of the file has to know, as values for JSON."""
    preprocessor, digest = model.data_preprocessor, hashlib.sha256()
    for shard in find_shards(checkpoint):
        digest.update(shard.read_bytes())
    normalised = getattr(preprocessor, '_enable_normalize', True)
    classes, palette = meta.get('classes'), meta.get('palette')  # lists, or arrays
    rcnn = (model.test_cfg.get('rcnn') or {}) if scope == 'mmdet' else {}
    with DefaultScope.overwrite_default_scope(scope):
        transforms = describe_pipeline(find_test_dataset(cfg).pipeline)
    if scope != 'mmpretrain' and any(step['type'] == 'CenterCrop' for step in transforms):
        raise UserError('CenterCrop of the test pipeline is exported for classifiers only: boxes and maps would move')
    if rcnn.get('mask_thr_binary', 0.5) < 0:
        raise UserError('mask_thr_binary is negative, which gives soft masks; set one from 0 to 1 to export')
    return dict(
        task=TASKS[scope],
        classes=list(map(str, classes)) if classes is not None and len(classes) else None,
        palette=np.asarray(palette).tolist() if palette is not None and not isinstance(palette, str) else None,
        transforms=transforms,
        mean=preprocessor.mean.flatten().tolist() if normalised else None,
        std=preprocessor.std.flatten().tolist() if normalised else None,
        mask_thr=rcnn.get('mask_thr_binary', 0.5),
        config=Path(cfg.filename).name if cfg.filename else None,
        checkpoint=checkpoint.name,
        checkpoint_sha256=digest.hexdigest(),
        mmlavit_version=__version__,
    )
