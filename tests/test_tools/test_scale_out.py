"""Several nodes, Slurm, FSDP, and going on in another number of processes: rehearsed on this machine, with gloo.

The model has no BatchNorm and the data no augmentation, so that a training is the same in any number of processes of
the same total batch; and the optimizer is SGD with momentum, which does not blow up rounding as Adam does where a
gradient is zero. One process that is never interrupted is what all others are compared with.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic
import torch
from mmengine.registry import DefaultScope

from mmlavit.engine import run
from mmlavit.utils.config_files import load_config

ROOT = Path(__file__).parents[2]
CLASSIFY = ROOT / 'configs/handwritten/classify_lavit_nano.py'
CONFIG = f"""
_base_ = '{CLASSIFY}'

train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(indices=32, pipeline=_base_.test_pipeline),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='SGD', lr=0.01, momentum=0.9, weight_decay=0.05),
    clip_grad=None,
)
auto_scale_lr = dict(base_batch_size=8)
train_cfg = dict(max_epochs=3)
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=3, T_max=3, convert_to_iter_based=True),
]
default_hooks = dict(
    logger=dict(interval=1),
    checkpoint=dict(save_best=None, max_keep_ckpts=-1),
)
visualizer = dict(vis_backends=[dict(type='LocalVisBackend')])
val_cfg = val_dataloader = val_evaluator = None
"""
FSDP = """
_base_ = './ddp.py'

runner_type = 'FlexibleRunner'
strategy = dict(
    type='mmlavit.engine.strategy.ResumableFSDPStrategy',
    model_wrapper=dict(use_orig_params=True, auto_wrap_policy='mmlavit.engine.strategy.shard_blocks'),
    state_dict_cfg='full',
)
"""
# What srun and scontrol do, as far as it matters here: two tasks on this machine.
SRUN = f"""#!{sys.executable}
import os, subprocess, sys
words = sys.argv[1:]
[tasks] = [int(word[9:]) for word in words if word.startswith('--ntasks=')]
command = words[words.index('--kill-on-bad-exit=1') + 1 :]
env = dict(os.environ, SLURM_NTASKS=str(tasks), SLURM_NODELIST='node', SLURM_JOB_ID='7')
running = [
    subprocess.Popen(command, env=dict(env, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank))) for rank in range(tasks)
]
sys.exit(max(process.wait() for process in running))
"""
SCONTROL = '#!/bin/sh\n[ "$*" = "show hostname node" ] && echo 127.0.0.1\n'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with a few handwritten crops, the configs and stand-ins for Slurm's commands."""
    root = tmp_path_factory.mktemp('scale_out')
    synthetic.write_handwritten(root)
    (root / 'ddp.py').write_text(CONFIG)
    (root / 'fsdp.py').write_text(FSDP)
    for name, text in (('srun', SRUN), ('scontrol', SCONTROL)):
        path = root / 'bin' / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    return root


@pytest.fixture(scope='module')
def reference(folder):
    """The work dir of a training of three epochs in this process, 16 pictures at a time."""
    run_here(folder, 'reference', {'train_dataloader.batch_size': 16, 'auto_scale_lr.enable': True})
    return folder / 'reference'


def run_here(folder, work_dir, options):
    """Train in this process, and leave no trace in it."""
    cfg = load_config(str(folder / 'ddp.py'))
    cfg.merge_from_dict({'work_dir': str(folder / work_dir), 'experiment_name': str(folder / work_dir), **options})
    scopes, here = dict(DefaultScope._instance_dict), os.getcwd()
    os.chdir(folder)
    try:
        run(cfg, 'train')
    finally:
        os.chdir(here)
        DefaultScope._instance_dict.clear()
        DefaultScope._instance_dict.update(scopes)


def start(folder, script, *args, **variables):
    """Start a script as a user does, without a GPU."""
    env = {**os.environ, 'CUDA_VISIBLE_DEVICES': '-1', 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable}
    env['PATH'] = f'{folder / "bin"}:{env["PATH"]}'
    command = [ROOT / 'tools' / script, *map(str, args)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, cwd=folder, env={**env, **variables}, **pipes)


def finish(*processes):
    """Wait for processes that succeed; give what they logged."""
    outputs = [process.communicate(timeout=200) for process in processes]
    for process, (_, error) in zip(processes, outputs):
        assert process.returncode == 0, error
    return [output for output, _ in outputs]


def until(epochs):
    return ['--cfg-options', f'train_cfg.max_epochs={epochs}']


def read_rates(*work_dirs):
    """Step and learning rate of each iteration, run after run."""
    files = [path for work_dir in work_dirs for path in sorted(work_dir.glob('2*/vis_data/scalars.json'))]
    rows = [json.loads(line) for path in files for line in path.open()]
    return [(row['step'], pytest.approx(row['lr'], rel=1e-6)) for row in rows]


def assert_same_training(file, expected):
    """Weights, momentum and place in the schedule agree with the reference's."""
    checkpoints = [torch.load(path, weights_only=False) for path in (file, expected)]
    weights, expected_weights = (checkpoint['state_dict'] for checkpoint in checkpoints)
    assert weights.keys() == expected_weights.keys()
    for name, value in expected_weights.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5, msg=name)
    momentum, expected_momentum = (sorted(_momenta(checkpoint)) for checkpoint in checkpoints)
    assert momentum == pytest.approx(expected_momentum, rel=1e-3, abs=1e-5)
    for key in ('epoch', 'iter', 'images_per_iteration'):
        assert len({checkpoint['meta'][key] for checkpoint in checkpoints}) == 1


def _momenta(checkpoint):
    """The norms of the momentum buffers: FSDP knows parameters by name, torch by number."""
    return [state['momentum_buffer'].norm().item() for state in checkpoint['optimizer']['state'].values()]


def test_one_training_in_changing_numbers_of_processes(folder, reference, free_port):
    """An epoch on two nodes, one in a single process, and one as a job of Slurm."""
    nodes = [
        start(
            folder,
            *('dist_train.sh', 'ddp.py', 1, '--work-dir', 'nodes', '--auto-scale-lr', *until(1)),
            **dict(NNODES='2', NODE_RANK=str(rank), PORT=str(free_port)),
        )
        for rank in range(2)
    ]
    logs = finish(*nodes)
    # The linear rule counts the processes of all nodes; only the first process logs.
    assert 'current batch size is 16. Scaling the original LR by 2.0' in logs[0]
    assert 'Epoch(train)' in logs[0] and 'Epoch(train)' not in logs[1]
    assert_same_training(folder / 'nodes/epoch_1.pth', reference / 'epoch_1.pth')

    options = {'load_from': 'nodes/epoch_1.pth', 'resume': True, 'train_cfg.max_epochs': 2}
    run_here(folder, 'single', {'train_dataloader.batch_size': 16, **options})
    assert_same_training(folder / 'single/epoch_2.pth', reference / 'epoch_2.pth')

    args = ['partition', 'job', 'ddp.py', 'slurm', '--resume', 'single/epoch_2.pth']
    [log] = finish(start(folder, 'slurm_train.sh', *args, GPUS='2'))
    assert 'images per iteration' not in log
    assert_same_training(folder / 'slurm/epoch_3.pth', reference / 'epoch_3.pth')

    assert read_rates(*(folder / name for name in ('nodes', 'single', 'slurm'))) == read_rates(reference)


def test_fsdp(folder, reference, free_port):
    """Sharded over two processes for an epoch, over one for the next."""
    args = ['fsdp.py', 2, '--work-dir', 'sharded', '--auto-scale-lr', *until(1)]
    finish(start(folder, 'dist_train.sh', *args, PORT=str(free_port)))
    assert_same_training(folder / 'sharded/epoch_1.pth', reference / 'epoch_1.pth')

    args = ['fsdp.py', 1, '--work-dir', 'sharded', '--resume', *until(2), 'train_dataloader.batch_size=16']
    finish(start(folder, 'dist_train.sh', *args, PORT=str(free_port)))
    assert_same_training(folder / 'sharded/epoch_2.pth', reference / 'epoch_2.pth')
    assert read_rates(folder / 'sharded') == read_rates(reference)[:4]


def test_flexible_runner(folder, reference):
    """In a single process; a checkpoint that is written again after a validation does not count that as an epoch."""
    validation = load_config(str(CLASSIFY))
    options = {key: dict(validation[key], _delete_=True) for key in ('val_cfg', 'val_dataloader', 'val_evaluator')}
    options['val_dataloader'].update(num_workers=0, persistent_workers=False)
    options.update({'train_dataloader.batch_size': 16, 'auto_scale_lr.enable': True, 'train_cfg.val_interval': 1})
    options['default_hooks.checkpoint.save_best'] = 'accuracy/top1'
    run_here(folder, 'flexible', {'runner_type': 'FlexibleRunner', 'train_cfg.max_epochs': 1, **options})
    assert list((folder / 'flexible').glob('best_*_epoch_1.pth'))
    assert_same_training(folder / 'flexible/epoch_1.pth', reference / 'epoch_1.pth')


def test_deterministic(folder, monkeypatch):
    """Two runs with augmentation, drop path and a shuffled order lose exactly the same."""
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', '')
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG')
    options = {
        'train_cfg.max_epochs': 1,
        'model.backbone.drop_path_rate': 0.3,
        'train_dataloader.dataset.pipeline': load_config(str(CLASSIFY)).train_pipeline,
        'randomness.deterministic': True,
    }
    losses = []
    try:
        for seed, work_dir in [(0, 'first'), (0, 'second'), (1, 'third')]:
            torch.rand(len(losses) + 1)  # whatever happened before
            run_here(folder, work_dir, {**options, 'randomness.seed': seed})
            [path] = (folder / work_dir).glob('2*/vis_data/scalars.json')
            losses.append([json.loads(line)['loss'] for line in path.open()])
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ['CUBLAS_WORKSPACE_CONFIG'] == ':4096:8'
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
    assert losses[0] == losses[1] != losses[2]
    assert len(losses[0]) == 4
