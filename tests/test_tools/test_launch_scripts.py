"""The shell scripts pass on what they are given; a stand-in takes the place of Python and srun."""

import os
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / 'tools'
USAGE = {
    'dist_train.sh': ['config.py'],
    'dist_test.sh': ['config.py', 'some.pth'],
    'slurm_train.sh': ['partition', 'job'],
    'slurm_test.sh': ['partition', 'job', 'config.py'],
}
VARIABLES = 'NNODES NODE_RANK MASTER_ADDR PORT GPUS GPUS_PER_NODE CPUS_PER_TASK SRUN_ARGS PYTHON'.split()


@pytest.fixture
def run(tmp_path):
    """Run a script; give its exit code, the words it would run, and its standard error."""
    for name in ('python', 'srun', 'other python'):
        stand_in = tmp_path / name
        stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$(basename "$0")" "$@"\n')
        stand_in.chmod(0o755)

    def run_script(name, *args, **variables):
        env = {key: value for key, value in os.environ.items() if key not in VARIABLES}
        env = {**env, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', **variables}
        done = subprocess.run([TOOLS / name, *args], env=env, capture_output=True, text=True)
        return done.returncode, done.stdout.splitlines(), done.stderr

    return run_script


@pytest.mark.parametrize('script', USAGE)
def test_usage(script, run):
    for count in range(len(USAGE[script]) + 1):
        code, words, error = run(script, *USAGE[script][:count])
        assert (code, words) == (2, [])
        assert error.startswith('usage: ') and error.count('\n') == 1


@pytest.mark.parametrize(
    ('gpus', 'variables'), [('--resume', {}), ('0', {}), ('2x', {}), ('2', dict(NNODES='x')), ('2', dict(PORT='a'))]
)
def test_numbers(run, gpus, variables):
    """Without them, torch ends in a traceback, or with a usage of its own."""
    for script, args in ('dist_train.sh', ['config.py']), ('dist_test.sh', ['config.py', 'some.pth']):
        code, words, error = run(script, *args, gpus, '--resume', **variables)
        assert (code, words) == (2, [])
        assert error.startswith('usage: ') and error.count('\n') == 1


@pytest.mark.parametrize('gpus', ['auto', 'gpu', 'cpu'])
def test_words_of_torchrun(run, gpus):
    _, words, _ = run('dist_train.sh', 'config.py', gpus)
    assert f'--nproc_per_node={gpus}' in words


def test_dist_train(run):
    code, words, _ = run('dist_train.sh', 'a config.py', '2', '--cfg-options', 'a=1 2', 'b=3')
    assert code == 0
    assert words == [
        *('python', '-m', 'mmlavit.engine.launch'),
        *('--nnodes=1', '--node_rank=0', '--master_addr=127.0.0.1', '--master_port=29500'),
        *('--nproc_per_node=2', str(TOOLS / 'train.py'), 'a config.py', '--launcher', 'pytorch'),
        *('--cfg-options', 'a=1 2', 'b=3'),
    ]


def test_a_search_path_of_cd(run, tmp_path):
    """With CDPATH, cd prints where it goes."""
    env = {**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'CDPATH': f'.:{tmp_path}'}
    done = subprocess.run(
        ['tools/dist_train.sh', 'config.py', '2'], cwd=TOOLS.parent, env=env, capture_output=True, text=True
    )
    assert str(TOOLS / 'train.py') in done.stdout.splitlines()


def test_dist_test(run, tmp_path):
    nodes = dict(NNODES='3', NODE_RANK='1', MASTER_ADDR='10.0.0.1', PORT='1234')
    python = str(tmp_path / 'other python')
    _, words, _ = run('dist_test.sh', 'config.py', 'some.pth', '8', '--tta', **nodes, PYTHON=python)
    assert words == [
        *('other python', '-m', 'mmlavit.engine.launch'),
        *('--nnodes=3', '--node_rank=1', '--master_addr=10.0.0.1', '--master_port=1234'),
        *('--nproc_per_node=8', str(TOOLS / 'test.py'), 'config.py', 'some.pth'),
        *('--launcher', 'pytorch', '--tta'),
    ]


@pytest.mark.parametrize(
    ('given', 'passed'),
    [
        ([], []),
        (['dir'], ['--work-dir', 'dir']),
        (['dir', '--amp'], ['--work-dir', 'dir', '--amp']),
        (['--amp'], ['--amp']),
    ],
)
def test_slurm_train(run, given, passed):
    _, words, _ = run('slurm_train.sh', 'part', 'job', 'config.py', *given, SRUN_ARGS='--mem=8G --quiet')
    assert words == [
        *('srun', '-p', 'part', '--job-name=job', '--gres=gpu:8', '--ntasks=8', '--ntasks-per-node=8'),
        *('--cpus-per-task=5', '--kill-on-bad-exit=1', '--mem=8G', '--quiet'),
        *('python', '-u', str(TOOLS / 'train.py'), 'config.py', '--launcher', 'slurm', *passed),
    ]


def test_slurm_test(run):
    variables = dict(GPUS='16', GPUS_PER_NODE='4', CPUS_PER_TASK='2')
    _, words, _ = run('slurm_test.sh', 'part', 'job', 'config.py', 'some.pth', '--out', 'x.pkl', **variables)
    assert words == [
        *('srun', '-p', 'part', '--job-name=job', '--gres=gpu:4', '--ntasks=16', '--ntasks-per-node=4'),
        *('--cpus-per-task=2', '--kill-on-bad-exit=1'),
        *('python', '-u', str(TOOLS / 'test.py'), 'config.py', 'some.pth', '--launcher', 'slurm', '--out', 'x.pkl'),
    ]


def test_fewer_gpus_than_a_node_has(run):
    _, words, _ = run('slurm_train.sh', 'part', 'job', 'config.py', GPUS='2')
    assert {'--gres=gpu:2', '--ntasks=2', '--ntasks-per-node=2'} <= set(words)
