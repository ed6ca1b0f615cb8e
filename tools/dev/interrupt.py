#!/usr/bin/env python
"""Kill a training again and again while it saves, and see whether it always goes on from a whole checkpoint."""

import argparse
import logging
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner

import mmlavit  # noqa: F401  registers what is tried here
from mmlavit.engine.resume import find_whole_checkpoint
from mmlavit.errors import UserError, one_line_errors
from mmlavit.utils.checkpoint import load_checkpoint
from mmlavit.utils.local_files import remove_partial_files

PARAMETERS = 1_000_000  # 4 MB of weights, 12 MB with AdamW's moments


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


def train(work_dir: Path, checkpoint: str | None) -> None:
    """Train for ever, with a checkpoint after each iteration, of which the last is kept."""
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
        train_cfg=dict(by_epoch=False, max_iters=10**9),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1, max_keep_ckpts=1)),
        resume=checkpoint is not None,
        load_from=checkpoint,
        log_level='ERROR',
        cfg=Config(),
    )
    runner.train()


def kill_one(work_dir: Path, checkpoint: str | None, rng: random.Random) -> bool:
    """Start a training, kill it at some moment after its first checkpoint; tell whether it was writing."""
    before = set(work_dir.glob('iter_*.pth'))
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        train(work_dir, checkpoint)
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


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--kills', type=int, default=200, metavar='N', help='default: %(default)s')
    return parser.parse_args()


def main() -> None:
    """Kill, look, go on."""
    args = parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    rng, outcomes, checkpoint, last = random.Random(0), Counter(), None, 0
    with one_line_errors(), tempfile.TemporaryDirectory() as folder:
        for _ in range(args.kills):
            outcomes['while writing'] += kill_one(Path(folder), checkpoint, rng)
            checkpoint = find_whole_checkpoint(folder)
            if checkpoint is None:
                outcomes['nothing to go on from'] += 1
                continue
            reached = load_checkpoint(checkpoint)['meta']['iter']
            outcomes['gone on'] += reached > last
            last = reached
        files = sorted(path.name for path in Path(folder).glob('*.pth'))
    print(f'{args.kills} kills, {outcomes["while writing"]} of them while a file was being written')
    print(f'{outcomes["gone on"]} left a whole checkpoint, later than the one before; the last is of iteration {last}')
    print(f'checkpoints in the folder: {", ".join(files)}')
    if outcomes['gone on'] != args.kills:
        raise SystemExit(1)


if __name__ == '__main__':
    main()
