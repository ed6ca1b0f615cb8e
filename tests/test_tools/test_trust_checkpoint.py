"""No tool runs code of a checkpoint, wherever it is named, unless it is told to trust it."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import payload
import pytest
import synthetic
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from tool_runs import call_tool

from mmlavit.utils.checkpoint import load_from_local

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs/handwritten'
CLASSIFY = CONFIGS / 'classify_lavit_nano.py'
TRUST = '--trust-checkpoint'
VARIABLE = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
# Two iterations an epoch, and no validation.
TINY = f"""
_base_ = '{CLASSIFY}'

train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(indices=8))
test_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(indices=4))
test_evaluator = dict(topk=1)
val_cfg = val_dataloader = val_evaluator = None
train_cfg = dict(max_epochs=1)
default_hooks = dict(checkpoint=dict(save_best=None))
visualizer = dict(vis_backends=[dict(type='LocalVisBackend')])
"""
# Where a training can name a checkpoint: in its config, or on its command line.
KEYS = {
    'load_from': ("load_from = '{file}'", []),
    'resume': ('', ['--resume', '{file}']),
    'automatic resume': ('', ['--resume']),
    'FlexibleRunner': ("runner_type = 'FlexibleRunner'", ['--resume', '{file}']),
    'model': ('model = dict(init_cfg={init})', []),
    'backbone': ("model = dict(backbone=dict(init_cfg=dict({init}, prefix='backbone.')))", []),
    'in a list': (
        "model = dict(head=dict(init_cfg=[dict(type='Normal', layer='Linear'), dict({init}, prefix='head.')]))",
        [],
    ),
    'with workers': ("load_from = '{file}'\ntrain_dataloader = dict(num_workers=1)", []),
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with a few handwritten crops and a config of two iterations."""
    root = tmp_path_factory.mktemp('trust')
    synthetic.write_handwritten(root)
    (root / 'tiny.py').write_text(TINY)
    return root


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv(VARIABLE, '')
    MMLogger._instance_dict.clear()  # one of the last test would write to where that captured its output


@pytest.fixture(scope='module')
def trained(folder):
    """The checkpoint of a training."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        with pytest.MonkeyPatch.context() as patch:
            call_tool(patch, 'train.py', 'tiny.py', '--work-dir', 'trained')
    finally:
        os.chdir(before)
    return load_from_local(str(folder / 'trained/epoch_1.pth'))


@pytest.fixture
def harmful(trained, tmp_path):
    """The same with a payload, and the file that the payload makes."""
    trace = tmp_path / 'trace'
    return payload.write(tmp_path / 'harmful.pth', trained, trace), trace


def assert_refused(monkeypatch, capsys, file, trace, tool, *args):
    """The tool says one line, ends with 2, and the code did not run."""
    with pytest.raises(SystemExit) as stopped:
        call_tool(monkeypatch, tool, *args)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: {file} was not loaded: it asks for {os.system.__module__}.system, ')
    assert TRUST in error and error.count('\n') == 1
    assert not trace.exists()


def assert_guarded(monkeypatch, capsys, harmful, tool, *args):
    """The tool refuses the file, and reads it where it is told to."""
    assert_refused(monkeypatch, capsys, *harmful, tool, *args)
    call_tool(monkeypatch, tool, *args, TRUST)
    assert harmful[1].exists()


@pytest.mark.parametrize('key', KEYS)
def test_train(key, harmful, tmp_path, monkeypatch, capsys):
    file = harmful[0]
    text, args = KEYS[key]
    text = text.format(file=file, init=f"dict(type='Pretrained', checkpoint='{file}')")
    epochs = 2 if args else 1
    name = f'experiment_name = {tmp_path.name!r}'
    (tmp_path / 'config.py').write_text(
        f"_base_ = '{Path('tiny.py').resolve()}'\ntrain_cfg = dict(max_epochs={epochs})\n{name}\n{text}\n"
    )
    (tmp_path / 'last_checkpoint').write_text(str(file))  # of an earlier training in the same work dir
    args = [arg.format(file=file) for arg in args]
    assert_guarded(monkeypatch, capsys, harmful, 'train.py', tmp_path / 'config.py', '--work-dir', tmp_path, *args)


def test_text_of_a_config(trained, tmp_path, monkeypatch):
    """A file without a payload, of which mmengine runs a text when it resumes."""
    trace = tmp_path / 'trace'
    meta = dict(trained['meta'], config=f'open({str(trace)!r}, "w").close()')
    torch.save(dict(trained, meta=meta), tmp_path / 'text.pth')
    args = ['tiny.py', '--work-dir', tmp_path, '--resume', tmp_path / 'text.pth']
    call_tool(monkeypatch, 'train.py', *args, '--cfg-options', f'experiment_name={tmp_path.name}')
    assert not trace.exists()
    call_tool(monkeypatch, 'train.py', *args, TRUST, '--cfg-options', f'experiment_name={tmp_path.name}_trusted')
    assert trace.exists()


def test_test(harmful, tmp_path, monkeypatch, capsys):
    assert_guarded(monkeypatch, capsys, harmful, 'test.py', 'tiny.py', harmful[0], '--work-dir', tmp_path)


@pytest.mark.parametrize('name', ['classify_lavit_nano.py', 'mask_rcnn_lavit_nano.py', 'upernet_lavit_nano.py'])
def test_image_demo(name, tmp_path, monkeypatch, capsys):
    cfg = Config.fromfile(CONFIGS / name)
    init_default_scope(cfg.default_scope)
    classes = ('background', *'0123456789') if 'upernet' in name else tuple('0123456789')
    meta = dict(dataset_meta=dict(classes=classes, palette=[[0, 0, 0]] * len(classes)))
    file, trace = tmp_path / 'harmful.pth', tmp_path / 'trace'
    payload.write(file, dict(meta=meta, state_dict=MODELS.build(cfg.model).state_dict()), trace)
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((64, 64, 3), np.uint8))
    args = [tmp_path / 'a.png', CONFIGS / name, file, '--out-dir', tmp_path / 'out', '--device', 'cpu']
    assert_guarded(monkeypatch, capsys, (file, trace), 'image_demo.py', *args)


@pytest.mark.parametrize('out', ['out.pth', 'out.safetensors'])
def test_publish_model(out, harmful, tmp_path, monkeypatch, capsys):
    tool = 'model_converters/publish_model.py'
    assert_guarded(monkeypatch, capsys, harmful, tool, harmful[0], tmp_path / out)
    [published] = tmp_path.glob('out-*')
    assert load_from_local(str(published))['state_dict'].keys() == load_weights(harmful[0]).keys()


def load_weights(file):
    return torch.load(file, weights_only=False)['state_dict']


def test_pvt_v2_to_lavit(tmp_path, monkeypatch, capsys):
    file, trace = tmp_path / 'pvt.pth', tmp_path / 'trace'
    payload.write(file, dict(state_dict={'stages.0.norm.weight': torch.ones(64)}), trace)
    tool = 'model_converters/pvt_v2_to_lavit.py'
    assert_guarded(monkeypatch, capsys, (file, trace), tool, file, tmp_path / 'out.pth')
    assert load_from_local(str(tmp_path / 'out.pth'))['state_dict'].keys() == {'backbone.stages.0.norm.weight'}


def run(*command, **variables):
    """Run a command as a user does."""
    env = {**os.environ, 'CUDA_VISIBLE_DEVICES': '-1', 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable}
    env.update(PYTHONPATH=str(ROOT), **variables)
    return subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, timeout=300)


def test_launcher(harmful, tmp_path, free_port):
    """The option reaches the processes that it starts."""
    args = ['tiny.py', harmful[0], 1, '--work-dir', tmp_path, TRUST]
    done = run(ROOT / 'tools/dist_test.sh', *args, PORT=str(free_port))
    assert done.returncode == 0, done.stderr
    assert harmful[1].exists()


def test_script_of_a_toolbox(harmful, tmp_path, monkeypatch):
    """Its own script, with a config of ours; nothing else imports mmlavit."""
    script = Path(find_spec('mmpretrain').origin).parent / '.mim/tools/test.py'
    args = ['tiny.py', harmful[0], '--work-dir', tmp_path]
    done = run(sys.executable, script, *args)
    assert done.returncode == 1 and not harmful[1].exists()
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f'mmlavit_serve.errors.UserError: {harmful[0]} was not loaded: ') and VARIABLE in last
    monkeypatch.setenv(VARIABLE, '1')
    monkeypatch.setenv('LOCAL_RANK', '0')  # which the script would set for good
    call_tool(monkeypatch, script, *args)
    assert harmful[1].exists()


def test_every_tool_that_reads_checkpoints_has_the_option():
    """Found by what it imports; a new tool is not forgotten."""
    tools = sorted(set((ROOT / 'tools').rglob('*.py')) - set((ROOT / 'tools/dev').iterdir()))  # dev reads its own files
    readers = {
        path.name
        for path in tools
        if re.search(
            r'\bload_(checkpoint|trained)\b|\bopen_run\b|\bPredictor\b|export_onnx|add_(common|train)_arguments|torch\.load',
            path.read_text(),
        )
    }
    converters = {'export.py', 'publish_model.py', 'pvt_v2_to_lavit.py'}
    pictures = {'analyze_attention.py', 'attention_maps.py', 'feature_pyramid.py', 'report.py'}
    runs = {'compare_speed.py', 'demo.py', 'distill.py', 'image_demo.py', 'test.py', 'train.py'}
    assert readers == runs | converters | pictures
    for path in tools:
        if path.name in readers - {'demo.py'}:  # that reads what its own training has just written
            assert re.search(r'add_(trust|common|train|picture)_arguments?\(parser\b', path.read_text()), path
