#!/usr/bin/env python
"""Interrupt trainings again and again, and see whether they always go on as if nothing had happened."""

import argparse
import logging
import multiprocessing.util
import os
import random
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.runner import runner as mmengine_runner

import mmlavit  # noqa: F401  registers what is tried here
from mmlavit.datasets.handwritten import HandwrittenConfig, generate
from mmlavit.engine.resume import find_whole_checkpoint
from mmlavit.errors import STOPPED_CODE, UserError, one_line_errors
from mmlavit.utils.checkpoint import load_checkpoint
from mmlavit.utils.local_files import remove_partial_files
from mmlavit.utils.toolbox import load_toolbox

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs/handwritten/classify_lavit_nano.py'
# Epochs of 64 images, two workers, a checkpoint after each epoch and a validation after each second.
EPOCHS = 4
OPTIONS = (
    *(
        'exact_resume=True',
        f'train_cfg.max_epochs={EPOCHS}',
        'train_cfg.val_interval=2',
        'train_dataloader.batch_size=8',
    ),
    *('train_dataloader.num_workers=2', 'default_hooks.logger.interval=1', 'visualizer.vis_backends=[]'),
)
PARAMETERS = 4_000_000  # 16 MB of weights, 48 MB with AdamW's moments


class Model(BaseModel):
    """As large as a small model, and fast."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(PARAMETERS))

    def forward(self, x: torch.Tensor, mode: str) -> dict[str, torch.Tensor]:
        """Compute the loss of training."""
        return dict(loss=(self.weight * x.mean()).square().mean())


class Data(torch.utils.data.Dataset):
    """Eight numbers."""

    def __len__(self) -> int:
        """Count them."""
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Give one."""
        return dict(x=torch.tensor(float(index)))


def train_toy(work_dir: Path, checkpoint: str | None, iterations: int = 10**9) -> None:
    """Train, by default for ever, with a checkpoint after each iteration, of which the last is kept."""
    runner = Runner(
        Model(),
        work_dir=str(work_dir),
        experiment_name=f'{os.getpid()}',
        train_dataloader=dict(
            dataset=Data(),
            batch_size=2,
            sampler=dict(type='InfiniteSampler'),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=False, max_iters=iterations),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1, max_keep_ckpts=1)),
        resume=checkpoint is not None,
        load_from=checkpoint,
        log_level='ERROR',
        cfg=Config(),
    )
    runner.train()


def kill_toy(work_dir: Path, checkpoint: str | None, rng: random.Random) -> bool:
    """Start a training, kill it at some moment after its first checkpoint; tell whether it was writing."""
    before = set(work_dir.glob('iter_*.pth'))
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        train_toy(work_dir, checkpoint)
        os._exit(1)
    deadline = time.monotonic() + 60
    while set(work_dir.glob('iter_*.pth')) <= before and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.3))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        raise UserError('the training ended by itself; start it once without this script to see why')
    writing = any(work_dir.glob('.*.partial'))
    remove_partial_files(work_dir)
    return writing


def kill_while_saving(folder: Path, count: int) -> bool:
    """Kill -9 at random moments while checkpoints are written."""
    mmengine_runner.collect_env = dict  # starts programs, in each training anew
    train_toy(folder / 'first', None, iterations=1)  # imports much, once instead of in each child
    rng, outcomes, checkpoint, last = random.Random(0), Counter(), None, 0
    for _ in range(count):
        outcomes['while writing'] += kill_toy(folder, checkpoint, rng)
        checkpoint = find_whole_checkpoint(folder)
        if checkpoint is None:
            continue
        reached = load_checkpoint(checkpoint)['meta']['iter']
        outcomes['whole'] += reached >= last
        outcomes['later'] += reached > last
        last = reached
    files = sorted(path.name for path in folder.glob('*.pth'))
    print(f'{count} kills, {outcomes["while writing"]} of them while a file was being written')
    # It is not later where the new one was there, but not yet its name in last_checkpoint.
    print(f'{outcomes["whole"]} left a whole checkpoint, {outcomes["later"]} one that is later than the one before')
    print(f'checkpoints in the folder: {", ".join(files)}')
    return outcomes['whole'] == count


class Training:
    """A real training, started or resumed; what it says goes to a file in the folder."""

    def __init__(self, folder: Path, work_dir: str, processes: int) -> None:
        words = [str(CONFIG), '--work-dir', work_dir, '--resume', '--cfg-options', *OPTIONS]
        with open(folder / f'{work_dir}.txt', 'w') as said:
            if processes == 1:
                self.pid = _fork(folder, words, said.fileno())
            else:
                words[1:1] = [str(processes)]
                self.pid = _launch(folder, words, said.fileno())

    def wait(self, seconds: float | None = None) -> int | None:
        """Wait for its end, or at most so long; give its exit code, minus the signal that ended it, or None."""
        deadline = time.monotonic() + (seconds or float('inf'))
        while time.monotonic() < deadline:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        return None


def _fork(folder: Path, words: list[str], said: int) -> int:
    """Run tools/train.py in a copy of this process, which has imported what it needs."""
    child = os.fork()
    if child:
        return child
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(folder)
    logging.disable(logging.NOTSET)
    sys.argv = ['train.py', *words]
    code = 0
    try:
        runpy.run_path(str(ROOT / 'tools/train.py'), run_name='__main__')
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    multiprocessing.util._exit_function()  # the end of the workers, as at the end of any process
    os._exit(code)


def _launch(folder: Path, words: list[str], said: int) -> int:
    """Run tools/dist_train.sh."""
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        port = sock.getsockname()[1]
    env = dict(os.environ, PYTHON=sys.executable, PYTHONPATH=str(ROOT), PORT=str(port), CUDA_VISIBLE_DEVICES='-1')
    command = [ROOT / 'tools/dist_train.sh', *words]
    return subprocess.Popen(command, cwd=folder, env=env, stdout=said, stderr=subprocess.STDOUT).pid


def read(folder: Path, work_dir: str) -> str:
    """Read what the training has said that was started last."""
    return (folder / f'{work_dir}.txt').read_text()


def train_to_the_end(folder: Path, work_dir: str, processes: int) -> float:
    """Train, or finish a training; give the seconds it took."""
    begin = time.monotonic()
    code = Training(folder, work_dir, processes).wait()
    if code:
        raise UserError(f'a training ended with exit code {code}: {read(folder, work_dir)[-2000:]}')
    return time.monotonic() - begin


def find_ranks(launcher: int) -> list[int]:
    """Find the processes that a launcher has started."""
    children = Path(f'/proc/{launcher}/task/{launcher}/children').read_text().split()
    return [int(pid) for pid in children if b'train.py' in Path(f'/proc/{pid}/cmdline').read_bytes()]


def start_and_wait(folder: Path, processes: int, rng: random.Random) -> Training | None:
    """Start or resume the training that is to be interrupted, and wait until a while after its first iteration.

    Returns:
        Training, optional: None if it has ended.
    """
    training = Training(folder, 'killed', processes)
    while 'Epoch(train)' not in read(folder, 'killed'):
        if training.wait(0.05) is not None:
            return None
    return training if training.wait(rng.uniform(0, 3)) is None else None


def is_the_same(folder: Path, one: str, other: str) -> bool:
    """Tell whether the last checkpoints of two trainings have the same weights, bit by bit."""
    first, second = (load_checkpoint(str(folder / name / f'epoch_{EPOCHS}.pth'))['state_dict'] for name in (one, other))
    return all(torch.equal(first[key], second[key]) for key in first)


def kill_training(folder: Path, processes: int, seconds: float, rng: random.Random) -> str:
    """Kill -9 a training at a random moment, from its start to its end."""
    training = Training(folder, 'killed', processes)
    code = training.wait(rng.uniform(0, seconds))
    if code is None:
        os.kill(training.pid, signal.SIGKILL)
        training.wait()
        return 'killed'
    if code:
        raise UserError(f'a training ended by itself: {read(folder, "killed")[-2000:]}')
    return 'ended before'


def kill_rank(folder: Path, processes: int, seconds: float, rng: random.Random) -> str:
    """Kill -9 one of several processes while they train; the others have to end within a minute."""
    training = start_and_wait(folder, processes, rng)
    ranks = find_ranks(training.pid) if training else ()
    if not ranks:
        return 'ended before'
    os.kill(rng.choice(ranks), signal.SIGKILL)
    begin = time.monotonic()
    if training.wait(60) is None:
        raise UserError('the others had not ended after a minute')
    said = read(folder, 'killed').splitlines()[-1]
    if not re.fullmatch(r'error: process \d was ended by SIGKILL .*', said):
        raise UserError(f'the launcher did not say what happened but {said!r}')
    return f'ended {time.monotonic() - begin:.1f} s after'


def stop_training(folder: Path, processes: int, seconds: float, rng: random.Random) -> str:
    """Ask a training, or one of its processes or their launcher, to end while it trains."""
    number = rng.choice((signal.SIGTERM, signal.SIGINT))
    training = start_and_wait(folder, processes, rng)
    if training is None:
        return 'ended before'
    os.kill(rng.choice([training.pid, *(find_ranks(training.pid) if processes > 1 else ())]), number)
    begin = time.monotonic()
    code = training.wait(60)
    took = time.monotonic() - begin
    # After its last iteration and validation a training has nothing to stop, and the signal ends it as any program.
    if code == 0 or (folder / f'killed/epoch_{EPOCHS}.pth').exists() and code == 128 + number:
        return 'ended before'
    if code != STOPPED_CODE or f'{number.name}: stopped after iteration' not in read(folder, 'killed'):
        raise UserError(f'exit code {code} instead of {STOPPED_CODE}: {read(folder, "killed")[-2000:]}')
    return f'stopped {took:.1f} s after'


def interrupt_trainings(folder: Path, count: int, interrupt: Callable, processes: int) -> bool:
    """Interrupt a real training ``count`` times, let it end, and compare it with one that was left alone."""
    config = HandwrittenConfig(train_scenes=2, val_scenes=2, train_crops=64, val_crops=10)
    generate(folder / 'data/handwritten', config, progress=False)
    if processes == 1:
        load_toolbox('mmpretrain')
        train_toy(folder / 'first', None, iterations=1)
    seconds = train_to_the_end(folder, 'alone', processes)
    print(f'a training that is left alone takes {seconds:.0f} s', flush=True)
    rng, outcomes, place = random.Random(0), Counter(), 0
    while outcomes['interrupted'] < count:
        outcome = interrupt(folder, processes, seconds, rng)
        found = find_whole_checkpoint(str(folder / 'killed'))
        reached = 0 if found is None else load_checkpoint(found)['meta']['iter']
        print(f'{outcome}; a whole checkpoint of iteration {reached}', flush=True)
        outcomes['lost'] += reached < place
        place = reached
        if outcome == 'ended before':
            train_to_the_end(folder, 'killed', processes)
            outcomes['ends'] += 1
            outcomes['equal'] += is_the_same(folder, 'alone', 'killed')
            os.rename(folder / 'killed', folder / f'killed_{outcomes["ends"]}')
            place = 0
        outcomes['interrupted'] += outcome != 'ended before'
    train_to_the_end(folder, 'killed', processes)
    outcomes['ends'] += 1
    outcomes['equal'] += is_the_same(folder, 'alone', 'killed')
    print(f'{count} interruptions; {outcomes["lost"]} went back behind the checkpoint before')
    print(f'{outcomes["ends"]} trainings came to an end, {outcomes["equal"]} equal to the one left alone, bit by bit')
    return not outcomes['lost'] and outcomes['ends'] == outcomes['equal']


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'what',
        choices=['saving', 'training', 'rank', 'signals'],
        help='saving: kill -9 a small training while it writes checkpoints; training: kill -9 train.py at any time; '
        'rank: kill -9 one process of dist_train.sh; signals: SIGTERM or SIGINT while it trains',
    )
    parser.add_argument(
        '--processes',
        type=int,
        metavar='P',
        help='processes of the training, each with two workers; default: 2 for rank, else 1',
    )
    parser.add_argument('--number', type=int, default=20, metavar='N', help='how often; default: %(default)s')
    return parser.parse_args()


def main() -> None:
    """Interrupt, look, go on."""
    args = parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    with one_line_errors(), tempfile.TemporaryDirectory() as folder:
        if args.what == 'saving':
            fine = kill_while_saving(Path(folder), args.number)
        else:
            interrupt = dict(training=kill_training, rank=kill_rank, signals=stop_training)[args.what]
            processes = args.processes or (2 if args.what == 'rank' else 1)
            fine = interrupt_trainings(Path(folder), args.number, interrupt, processes)
    if not fine:
        raise SystemExit(1)


if __name__ == '__main__':
    main()
