"""tools/demo.py from the data to the summary, in miniature."""

import json
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


# A network whose export takes a part of the time.
SMALL = f"""
_base_ = '{ROOT}/configs/handwritten/classify_lavit_nano.py'

sizes = dict(embed_dims=[16, 16, 32, 32], depths=[1, 2, 1, 1], num_heads=[1, 1, 2, 2], mlp_ratios=[2, 2, 2, 2])
model = dict(
    backbone=dict(arch=dict(_delete_=True, num_va_layers=[1, 1, 1, 1], **sizes)),
    head=dict(in_channels=32),
)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that has a few pictures already, for tools without a GPU."""
    synthetic.write_handwritten(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, value in dict(PYTHONPATH=ROOT, OMP_NUM_THREADS=1, CUDA_VISIBLE_DEVICES=-1).items():
        monkeypatch.setenv(name, str(value))
    return tmp_path


def test_demo(folder, monkeypatch, capsys):
    (folder / 'small.py').write_text(SMALL)
    demo = runpy.run_path(str(ROOT / 'tools/demo.py'))
    tasks = demo['TASKS']
    monkeypatch.setitem(tasks, 'classification', tasks['classification']._replace(config=folder / 'small.py'))
    monkeypatch.setattr(sys, 'argv', ['demo.py', '--task', 'classification', '--cfg-options', *TINY])
    demo['main']()
    shown = capsys.readouterr().out
    folder = folder / 'work_dirs/demo_classification'
    summary = json.loads((folder / 'summary.json').read_text())
    (log,) = (folder / 'test').glob('2*/2*.json')
    tested = json.loads(log.read_text())['accuracy/top1']
    assert summary['metrics']['top-1 accuracy'] == pytest.approx(tested / 100)
    assert summary['seconds'].keys() == {'training', 'test', 'export', 'report'}  # the data was there
    for name, path in summary['files'].items():
        assert Path(path).exists(), name
    assert Image.open(folder / 'predictions.png').size == (2 * 320 + 3 * 6, 36 + 3 * 320 + 4 * 6)
    assert Image.open(folder / 'curves.png')
    assert 'Epoch(train)' in shown and 'Epoch(test)' in shown  # progress
    table = shown[shown.index('LaViT demo: classification') :]
    for row in ('top-1 accuracy', 'training took', 'checkpoint', 'curves', 'predictions', 'summary.json'):
        assert row in table


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


def test_failing_step(folder):
    command = [sys.executable, ROOT / 'tools/demo.py', '--task', 'classification']
    command += ['--cfg-options', 'model.backbone.depht=3', *TINY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 2
    assert "'depht'" in done.stderr
    assert done.stderr.splitlines()[-1].startswith('error: training failed (exit code 2)')
    assert 'LaViT demo' not in done.stdout
