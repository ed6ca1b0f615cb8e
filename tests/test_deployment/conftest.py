"""Exported models that several modules look at."""

import os

import pytest
from exportable import make_config, save_random
from filelock import FileLock

from mmlavit.apis.export import export_onnx
from mmlavit_serve import Predictor


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Predictors take one thread unless a test says otherwise: workers of pytest run beside each other."""
    monkeypatch.setitem(Predictor.__init__.__kwdefaults__, 'threads', 1)


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """Config, checkpoint and exported model of a kind, made when first asked for, once for all workers of pytest."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if 'PYTEST_XDIST_WORKER' in os.environ else root

    def make(kind):
        cfg = make_config(kind)
        if kind in ('cascade', 'fpn', 'mask_rcnn', 'upernet'):
            # Necks and heads alone: most of an export's time goes into a LaViT, and the others have one.
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
