"""tools/train.py and tools/test.py, alone and in two processes, as a user starts them."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic
import torch
from tool_runs import run_tool

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs/handwritten/classify_lavit_nano.py'
# Three iterations; an odd number of test pictures, one at a time, without workers.
TINY = [
    '--cfg-options',
    *('train_cfg.max_epochs=1', 'val_cfg=None', 'val_dataloader=None', 'val_evaluator=None'),
    *('train_dataloader.batch_size=8', 'train_dataloader.num_workers=0', 'train_dataloader.dataset.indices=48'),
    *('test_dataloader.batch_size=1', 'test_dataloader.num_workers=0', 'test_dataloader.dataset.indices=7'),
    *('test_evaluator.topk=3', 'default_hooks.logger.interval=1', 'default_hooks.checkpoint.save_best=None'),
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with a few handwritten crops under ``data/``."""
    root = tmp_path_factory.mktemp('train_test')
    synthetic.write_handwritten(root)
    return root


def run(folder, *command, **variables):
    """Run a command without a GPU, as on the machines where gloo is needed."""
    env = {**os.environ, 'CUDA_VISIBLE_DEVICES': '-1', 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable}
    env['PYTHONPATH'] = str(ROOT)
    command = [str(word) for word in command]
    return subprocess.run(command, cwd=folder, env={**env, **variables}, capture_output=True, text=True, timeout=300)


def python(folder, script, *args):
    return run(folder, sys.executable, ROOT / 'tools' / script, *args)


def read_metrics(work_dir):
    (path,) = work_dir.glob('2*/2*.json')
    return {key: value for key, value in json.loads(path.read_text()).items() if 'time' not in key}


def assert_mistake(done, *parts):
    """The command said one line and no more."""
    assert done.returncode == 2
    assert 'Traceback' not in done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert done.stderr.splitlines() == lines and len(lines) == 1
    for part in parts:
        assert part in lines[0]


def test_two_processes_give_the_metrics_of_one(folder, free_port):
    """Trained and tested in two processes on gloo; tested again in one."""
    scripts = ROOT / 'tools'
    port = dict(PORT=str(free_port))
    done = run(folder, scripts / 'dist_train.sh', CONFIG, 2, '--work-dir', 'trained', *TINY, **port)
    assert done.returncode == 0, done.stderr
    assert 'the processes talk over gloo' in done.stdout
    assert done.stdout.count('Epoch(train)') == 3  # 48 pictures in 2 processes by 8; one of them logs
    checkpoint = Path((folder / 'trained/last_checkpoint').read_text())

    args = [CONFIG, checkpoint, 2, '--work-dir', 'two', '--out', 'two.pkl', *TINY]
    done = run(folder, scripts / 'dist_test.sh', *args, **port)
    assert done.returncode == 0, done.stderr
    shown = ['--show-dir', 'shown']
    done = python(folder, 'test.py', CONFIG, checkpoint, '--work-dir', 'one', '--out', 'one.pkl', *shown, *TINY)
    assert done.returncode == 0, done.stderr

    one, two = read_metrics(folder / 'one'), read_metrics(folder / 'two')
    assert one.keys() == two.keys() != set()
    assert two == pytest.approx(one, abs=1e-6)
    # The pictures that fill up the last round of the second process are not counted.
    one, two = (pickle.loads((folder / f'{name}.pkl').read_bytes()) for name in ('one', 'two'))
    assert [sample['img_path'] for sample in one] == [sample['img_path'] for sample in two]
    assert len(one) == 7
    for a, b in zip(one, two):
        torch.testing.assert_close(a['pred_score'], b['pred_score'], rtol=0, atol=1e-6)
    assert list((folder / 'shown').glob('*.png'))


def test_mistake_in_two_processes(tmp_path, free_port):
    done = run(tmp_path, ROOT / 'tools/dist_train.sh', CONFIG, 2, PORT=str(free_port))
    assert_mistake(done, 'data/handwritten', 'tools/dataset_converters/handwritten.py')


@pytest.mark.parametrize(
    ('options', 'parts'),
    [
        (['--amp', '--cfg-options', 'optim_wrapper.dtype=float16'], ['float16 needs a GPU']),
        (['--cfg-options', 'model.backbone.depht=3'], ['LaViT', "'depht'"]),
    ],
    ids=['amp', 'option'],
)
def test_mistakes_found_while_building(folder, options, parts):
    assert_mistake(python(folder, 'train.py', CONFIG, *options), *parts)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['train.py', 'no.py'], 'config no.py does not exist'),
        (['train.py', CONFIG, '--resume', 'no.pth'], 'checkpoint no.pth does not exist'),
        (['test.py', CONFIG, 'no.pth'], 'checkpoint no.pth does not exist'),
        (['train.py', CONFIG, '--resume', ROOT / 'tests'], f'checkpoint {ROOT / "tests"} is a folder; expected a .pth'),
        (
            ['train.py', ROOT / 'configs/_base_/datasets/coco_instance.py'],
            f'config {ROOT / "configs/_base_/datasets/coco_instance.py"} has no model, so it cannot train',
        ),
        (
            ['train.py', ROOT / 'configs/mask_rcnn_lavit_s.py'],
            'missing data: data/coco/annotations/instances_train2017.json, ',
        ),
        (['train.py', ROOT / 'configs/upernet_lavit_s.py'], 'missing data: data/ade/ADEChallengeData2016/images'),
        (['train.py', ROOT / 'configs/lavit_s_in1k.py'], 'missing data: data/imagenet/train, data/imagenet/val;'),
    ],
    ids=['config', 'resume', 'checkpoint', 'folder', 'part', 'COCO', 'ADE20K', 'ImageNet'],
)
def test_mistakes_found_before(tmp_path, monkeypatch, capsys, args, message):
    """In this process, for speed."""
    script, *options = args
    monkeypatch.chdir(tmp_path)
    assert run_tool(monkeypatch, script, *options) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: {message}')
    assert error.count('\n') == 1
    assert ('docs/data.md' in error) == ('data: data/' in message)
    assert not (tmp_path / 'work_dirs').exists()


def test_bugs_keep_their_trace(folder):
    done = python(folder, 'train.py', CONFIG, '--cfg-options', 'train_cfg.max_epochs=many')
    assert done.returncode == 1
    assert 'Traceback' in done.stderr and "'many'" in done.stderr
