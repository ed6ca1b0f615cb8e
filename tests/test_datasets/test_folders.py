"""Classes that are folders: those of all splits are the same, and none is empty."""

import cv2
import numpy as np
import pytest
from documents import ROOT
from tool_runs import run_tool

from mmlavit.utils.config_files import load_config


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A classifier of two classes, and its data."""
    monkeypatch.chdir(tmp_path)
    for split in ('train', 'val'):
        for name in ('a', 'b'):
            (tmp_path / f'data/{split}/{name}').mkdir(parents=True)
            cv2.imwrite(str(tmp_path / f'data/{split}/{name}/1.png'), np.zeros((64, 64, 3), np.uint8))
    cfg = load_config(str(ROOT / 'configs/handwritten/classify_lavit_nano.py'))
    cfg.model.head.num_classes = cfg.model.data_preprocessor.num_classes = 2
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        folder = 'train' if split == 'train' else 'val'
        loader.dataset = dict(
            type='CustomDataset', data_root='data', data_prefix=folder, pipeline=loader.dataset.pipeline
        )
    cfg.train_cfg.max_epochs = 1
    cfg.dump('config.py')
    return tmp_path / 'data'


def check(monkeypatch, capfd):
    code = run_tool(monkeypatch, 'check_data.py', 'config.py')
    return code, capfd.readouterr().out


def test_good_folders(config, monkeypatch, capfd):
    code, said = check(monkeypatch, capfd)
    assert code == 0 and 'OK, no fault' in said


def test_other_folders(config, monkeypatch, capfd):
    (config / 'val/a').rename(config / 'val/z')
    message = 'data/val has other class folders than data/train (a, z only in one of them)'
    code, said = check(monkeypatch, capfd)
    assert code == 1 and said.count(message) == 1
    code = run_tool(monkeypatch, 'train.py', 'config.py', '--work-dir', config / 'run')
    assert code == 2 and f'error: {message}' in capfd.readouterr().err


def test_a_folder_without_images(config, monkeypatch, capfd):
    (config / 'train/b/1.png').rename(config / 'train/b/1.heic')
    code, said = check(monkeypatch, capfd)
    assert code == 0 and 'note: data/train has 1 class folders without an image (b; looked for are .' in said
