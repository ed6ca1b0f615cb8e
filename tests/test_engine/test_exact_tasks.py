"""Classification, detection and segmentation resume exactly: with what these toolboxes draw at random."""

import copy
from pathlib import Path

import pytest
import synthetic
from mmengine.registry import DefaultScope
from toy_training import same_training

from mmlavit.engine import run
from mmlavit.utils.config_files import load_config

ROOT = Path(__file__).parents[2]
FLIP = dict(type='RandomFlip', prob=0.5)
CROP = dict(type='RandomCrop', crop_size=64, padding=6)
CONFIGS = {
    # Mixup and drop path draw in the process, crops in the workers; the weights are averaged.
    'classify_lavit_nano.py': dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomCrop', crop_size=64, padding=6),
            dict(type='PackInputs'),
        ],
        model=dict(
            train_cfg=dict(_delete_=True, augments=[dict(type='Mixup', alpha=0.8)]), backbone=dict(drop_path_rate=0.3)
        ),
        dataset=dict(indices=16),
        train_cfg=dict(max_epochs=1),
    ),
    # Proposals are sampled at random.
    'mask_rcnn_lavit_nano.py': dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            FLIP,
            dict(type='PackDetInputs'),
        ],
        train_cfg=dict(max_epochs=1),
    ),
    # An endless sampler.
    'upernet_lavit_nano.py': dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            FLIP,
            dict(type='PhotoMetricDistortion'),
            dict(type='PackSegInputs'),
        ],
        train_cfg=dict(max_iters=4),
    ),
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with a few handwritten scenes."""
    root = tmp_path_factory.mktemp('tasks')
    synthetic.write_handwritten(root)
    return root


def train(config, work_dir, workers, resume=None):
    """Train four iterations."""
    options = copy.deepcopy(CONFIGS[config])  # merging takes _delete_ out
    cfg = load_config(str(ROOT / 'configs/handwritten' / config))
    batch = 4 if 'classify' in config else 2
    cfg.merge_from_dict(
        dict(
            exact_resume=True,
            train_dataloader=dict(batch_size=batch, num_workers=workers, persistent_workers=workers > 0),
            train_cfg=options['train_cfg'],
            model=options.get('model', {}),
            work_dir=str(work_dir),
            experiment_name=str(work_dir),
            resume=resume is not None,
            load_from=None if resume is None else str(resume),
        )
    )
    cfg.train_dataloader.dataset.update(pipeline=options['pipeline'], **options.get('dataset', {}))
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=2)
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type='EMAHook', momentum=0.3, update_buffers=True)]
    cfg.visualizer.vis_backends = []
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        run(cfg, 'train')


@pytest.mark.parametrize('config', CONFIGS)
def test_resumed(config, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    train(config, tmp_path / 'whole', workers=2)
    train(config, tmp_path / 'resumed', workers=0, resume=tmp_path / 'whole/iter_2.pth')
    assert same_training(tmp_path / 'whole/iter_4.pth', tmp_path / 'resumed/iter_4.pth')
    assert not same_training(tmp_path / 'whole/iter_2.pth', tmp_path / 'whole/iter_4.pth')
