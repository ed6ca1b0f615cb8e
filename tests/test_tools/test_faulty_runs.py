"""Runs on faulty data and with checkpoints of other models, by the tools, as a user starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from faults import FAULTS, write_data
from tool_runs import run_tool

ROOT = Path(__file__).parents[2]
EVERYTHING = os.environ.get('MMLAVIT_EVERY_FAULT')  # each takes a training, in all some minutes
RUNS = [('detection', 'cut off', 1), ('segmentation', 'label out of range', 0), ('classification', '1x1', 0)]
if EVERYTHING:
    RUNS = [(task, name, 1) for task, faults in FAULTS.items() for name in faults]


def tool(folder, *words):
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '-1'}
    command = [sys.executable, str(ROOT / 'tools' / words[0]), *map(str, words[1:])]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)


def errors(text):
    return [line for line in text.splitlines() if line.startswith('error: ')]


@pytest.mark.parametrize(('task', 'name', 'workers'), RUNS)
def test_training(task, name, workers, tmp_path):
    fault = FAULTS[task][name]
    config = write_data(tmp_path, task, workers)
    fault.make(tmp_path)
    done = tool(tmp_path, 'train.py', config.name)
    assert 'Traceback' not in done.stderr
    if fault.train:
        (line,) = errors(done.stderr)
        assert done.returncode == 2 and fault.train in line
    else:
        assert done.returncode == 0, done.stderr


def test_skipping_and_another_checkpoint(tmp_path, monkeypatch, capsys):
    """A training that leaves an image out and says so; then its checkpoint, with the config of another model."""
    config = write_data(tmp_path, 'classification', 1, 'skip_broken_data = True')
    FAULTS['classification']['cut off'].make(tmp_path)
    done = tool(tmp_path, 'train.py', config.name, '--work-dir', 'run')
    assert done.returncode == 0, done.stderr
    assert 'Images left out so far: 1; run/skipped_data.txt says which and why' in done.stdout
    assert 'data/images/1.jpg is cut off' in (tmp_path / 'run/skipped_data.txt').read_text()

    def error_of(tool, *args):
        assert run_tool(monkeypatch, tool, *args) == 2
        (line,) = errors(capsys.readouterr().err)
        return line

    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / 'run/epoch_1.pth'
    other = ['model.backbone.arch=tiny', 'model.head.in_channels=512']
    loader = 'val_cfg = None\ntest_cfg = dict()\ntest_dataloader = dict(batch_size=1, num_workers=0, dataset=data, '
    config.write_text(
        config.read_text().replace('test_cfg = test_dataloader = test_evaluator', 'test_evaluator')
        + loader + "sampler=dict(type='DefaultSampler', shuffle=False))\ntest_evaluator = dict(type='Accuracy')\n"
    )  # fmt: skip
    line = error_of('test.py', config.name, checkpoint, '--cfg-options', *other)
    assert f'{checkpoint} is not a checkpoint of this config: of ' in line and 'of another shape there' in line
    line = error_of('image_demo.py', 'data/images/0.jpg', config.name, 'other.pth')
    assert 'other.pth does not exist' in line
    state = torch.load(checkpoint, weights_only=False)['state_dict']
    torch.save(
        dict(state_dict={key: value for key, value in state.items() if 'head' not in key}), tmp_path / 'part.pth'
    )
    line = error_of('image_demo.py', 'data/images/0.jpg', config.name, 'part.pth')
    assert 'part.pth is not a checkpoint of this config' in line and '2 missing in the file (head.fc.weight, ' in line
