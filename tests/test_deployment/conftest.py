"""Exported models that several modules look at."""

import os

import pytest
import torch
from exportable import DIGITS, build, make_config
from filelock import FileLock

from mmlavit.apis.export import export_onnx


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """Config, checkpoint and exported model of a kind, made when first asked for, once for all workers of pytest."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if 'PYTEST_XDIST_WORKER' in os.environ else root

    def make(kind):
        cfg = make_config(kind)
        if kind in ('cascade', 'fpn'):
            # Necks and heads alone: most of an export's time goes into a LaViT, and three of the others have one.
            cfg.model.backbone = dict(type='FourConvolutions')
            # The pipelines of the large configs, with smaller images.
            for step in cfg.test_dataloader.dataset.pipeline:
                if step['type'] == 'Resize':
                    step['scale'] = (240, 180)
        checkpoint, file = root / f'{kind}.pth', root / f'{kind}.onnx'
        with FileLock(root / f'{kind}.lock'):
            if not file.exists():
                save_random(cfg, checkpoint)
                export_onnx(cfg, checkpoint, file)
        return cfg, checkpoint, file

    return make


def save_random(cfg, checkpoint):
    """Save a checkpoint of random weights, with names and colours of as many classes as the model has."""
    classes = {10: DIGITS, 11: ('background', *DIGITS), 150: tuple(map(str, range(150)))}[num_classes(cfg)]
    palette = [[index, 0, 255 - index] for index in range(len(classes))]
    meta = dict(dataset_meta=dict(classes=classes, palette=palette))
    torch.save(dict(state_dict=build(cfg).state_dict(), meta=meta), checkpoint)


def num_classes(cfg):
    """The number of classes of a segmentor; all others have ten."""
    return cfg.model.decode_head.num_classes if cfg.default_scope == 'mmseg' else 10
