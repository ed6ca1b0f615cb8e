"""The launcher of several processes."""

import os
import subprocess
import sys

import pytest
import torch

from mmlavit.engine.launch import main

# Two processes add up 1 and 2. In the first attempt the second process is gone before.
SCRIPT = """
import os, signal
import torch
from torch import distributed as dist
dist.init_process_group('gloo')
attempt = os.environ['TORCHELASTIC_RESTART_COUNT']
if attempt == '0' and dist.get_rank() == 1:
    os.kill(os.getpid(), signal.SIGKILL)
total = torch.tensor(dist.get_rank() + 1)
dist.all_reduce(total)
print(f'attempt {attempt}: {total.item()}', flush=True)
dist.destroy_process_group()  # a thread of it that is alive at the end can abort the process
"""


def test_restarts(tmp_path, free_port):
    """The second attempt does not wait for the processes of the first."""
    (tmp_path / 'sum.py').write_text(SCRIPT)
    command = [sys.executable, '-m', 'mmlavit.engine.launch', '--nproc_per_node=2', '--master_addr=127.0.0.1']
    command += [f'--master_port={free_port}', 'sum.py']
    env = dict(os.environ, PET_MAX_RESTARTS='1', CUDA_VISIBLE_DEVICES='-1')
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('attempt 1: 3') == 2  # their line ends may come together


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_as_many_processes_as_there_are_gpus(capsys):
    assert main(['--nproc_per_node=gpu', 'a.py']) == 2
    assert capsys.readouterr().err == 'error: no GPU is available; give the number of processes instead of gpu\n'
