"""docs/own_project.md, word for word: a project outside of this repository, trained by mmdet's own script."""

import os
import shutil
import subprocess
import sys

import pytest
import synthetic
import torch
from documents import ROOT, code_blocks, example_files

import mmlavit  # noqa: F401  lets torch load a training checkpoint

PAGE = ROOT / 'docs/own_project.md'


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """The page's files, and COCO in miniature."""
    root = tmp_path_factory.mktemp('example')
    for path, block in example_files(PAGE).items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text(block)
    synthetic.write_coco(root / 'my_project')
    return root


def test_it_is_the_config_of_the_readme():
    name = 'my_project/retinanet_lavit.py'
    assert example_files(PAGE)[name] == example_files(ROOT / 'README.md')[name]


@pytest.mark.parametrize('trainer', ['of mmdet', 'of this repository'])
def test_first_try_trains_and_validates(project, trainer):
    train, first_try, *_ = code_blocks(PAGE, 'bash')
    *setup, run = train.splitlines()
    assert first_try.startswith(run)  # the same command, with options that make it short
    if trainer == 'of this repository':
        setup.append(f'TRAIN={ROOT}/tools/train.py')
    shutil.rmtree(project / 'my_project/first_try', ignore_errors=True)
    env = {**os.environ, 'CUDA_VISIBLE_DEVICES': '-1', 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    env['PATH'] = os.pathsep.join([os.path.dirname(sys.executable), env['PATH']])
    script = '\n'.join(['set -e', *setup, first_try])
    done = subprocess.run(['bash', '-c', script], cwd=project, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    log = done.stdout + done.stderr
    assert 'Epoch(train) [1][1/1]' in log and 'Epoch(val) [1][2/2]' in log
    for loss in ('loss_cls', 'loss_bbox', 'loss_diag'):
        assert f'{loss}: ' in log
    checkpoint = torch.load(project / 'my_project/first_try/epoch_1.pth', weights_only=True)
    assert any(key.startswith('backbone.stages.3.blocks.1.attn.delta_psi') for key in checkpoint['state_dict'])
