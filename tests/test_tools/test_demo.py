"""tools/demo.py from the data to the summary, in miniature."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic
from mmengine.config import Config
from PIL import Image

from mmlavit.datasets import HandwrittenConfig, generate, handwritten
from mmlavit.utils.data_paths import missing_data

ROOT = Path(__file__).parents[2]
TINY = [
    *('train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'train_dataloader.batch_size=8'),
    *(f'{split}_dataloader.num_workers=0' for split in ('train', 'val', 'test')),
]


@pytest.fixture
def demo(tmp_path):
    """Run the demo in a folder that has a few pictures already."""
    synthetic.write_handwritten(tmp_path)

    def run_demo(*options):
        env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '-1'}
        command = [sys.executable, ROOT / 'tools/demo.py', '--task', 'classification', *options]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1800)

    return run_demo


def test_demo(demo, tmp_path):
    done = demo('--cfg-options', *TINY)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / 'work_dirs/demo_classification'
    summary = json.loads((folder / 'summary.json').read_text())
    assert 0 <= summary['metrics']['top-1 accuracy'] <= 1
    assert summary['seconds'].keys() == {'training', 'test', 'export', 'report'}  # the data was there
    for name, path in summary['files'].items():
        assert (tmp_path / path).exists(), name
    assert Image.open(folder / 'predictions.png').size == (2 * 320 + 3 * 6, 36 + 3 * 320 + 4 * 6)
    assert Image.open(folder / 'curves.png')
    assert 'Epoch(train)' in done.stdout and 'Epoch(test)' in done.stdout  # progress
    table = done.stdout[done.stdout.index('LaViT demo: classification') :]
    for shown in ('top-1 accuracy', 'training took', 'checkpoint', 'curves', 'predictions', 'summary.json'):
        assert shown in table


def test_killed_generation_is_made_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    is_made = runpy.run_path(str(ROOT / 'tools/demo.py'))['is_made']
    cfg = Config.fromfile(ROOT / 'configs/handwritten/classify_lavit_nano.py')
    options = HandwrittenConfig(train_scenes=1, val_scenes=1, train_crops=10, val_crops=10)
    assert not is_made(cfg)
    generate('data/handwritten', options, progress=False)
    assert is_made(cfg)

    def stop_at_the_last(path, image):
        if path.match('classification/val/9/*'):
            raise KeyboardInterrupt

    monkeypatch.setattr(handwritten, '_write_png', stop_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        generate('data/handwritten', options, overwrite=True, progress=False)
    assert not missing_data(cfg, ['train', 'val'])  # every folder is there
    assert not is_made(cfg)


def test_failing_step(demo):
    done = demo('--cfg-options', 'model.backbone.depht=3', *TINY)
    assert done.returncode == 2
    assert "'depht'" in done.stderr
    assert done.stderr.splitlines()[-1].startswith('error: training failed (exit code 2)')
    assert 'LaViT demo' not in done.stdout
