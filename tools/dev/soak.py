#!/usr/bin/env python
"""Train or predict for long with images of changing sizes, and see whether memory levels off."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmlavit.datasets.handwritten import HandwrittenConfig, generate
from mmlavit.errors import UserError, one_line_errors
from mmlavit.utils.arguments import add_trust_argument
from mmlavit.utils.local_files import expand_home
from mmlavit_serve import Predictor

ROOT = Path(__file__).resolve().parents[2]
CONFIG = 'configs/handwritten/mask_rcnn_lavit_nano.py'
LIMIT = 0.03  # growth after warming up that is a leak
WARM_UP = 1 / 3  # of the samples
MEGABYTE = 1e6


class Heap(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in 'arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost'.split()
    ]


class Gauge:
    """Reads the memory of this process.

    Resident memory is what the system has given; some of it is free, in pieces that the allocator keeps. What is in
    use tells a leak from that.

    Args:
        trim (bool): Whether to have the allocator give back what it can before each reading.
    """

    def __init__(self, trim: bool) -> None:
        self.trim, self.library = trim, ctypes.CDLL(None)
        if not hasattr(self.library, 'mallinfo2'):
            raise UserError('this needs Linux with glibc 2.33 or newer: it asks its allocator what is in use')
        self.library.mallinfo2.restype = Heap
        self.readings: list[dict[str, float]] = []
        self.start = time.monotonic()

    def read(self, step: int) -> None:
        """Take a reading, in MB."""
        gc.collect()
        if self.trim:
            self.library.malloc_trim(0)
        status = Path('/proc/self/status').read_text()
        kilobytes = dict(line.split()[:2] for line in status.splitlines() if line.endswith('kB'))
        heap = self.library.mallinfo2()
        self.readings.append(
            dict(
                step=step,
                seconds=round(time.monotonic() - self.start, 1),
                resident=int(kilobytes['VmRSS:']) * 1024 / MEGABYTE,
                peak=int(kilobytes['VmHWM:']) * 1024 / MEGABYTE,
                in_use=(heap.uordblks + heap.hblkhd) / MEGABYTE,
                python_blocks=sys.getallocatedblocks(),
            )
        )

    def report(self, unit: str) -> float:
        """Print what was read; return the growth of resident memory after warming up, as a share."""
        steps, resident, in_use = (np.array([r[key] for r in self.readings]) for key in ('step', 'resident', 'in_use'))
        if not self.readings:
            raise UserError('nothing was read; take a longer run, or a smaller --every')
        first, last = self.readings[0], self.readings[-1]
        print(f'{last["step"]} {unit} in {last["seconds"]:.0f} s, {len(steps)} readings')
        print(
            f'resident: {first["resident"]:.0f} MB at first, {last["resident"]:.0f} at last, {last["peak"]:.0f} at most'
        )
        begin = int(len(steps) * WARM_UP)
        if len(steps) - begin < 10:
            raise UserError(f'{len(steps)} readings are too few to tell a slope; take a longer run')
        growth = {}
        for name, values in (('resident', resident), ('in use', in_use)):
            slope, level = np.polyfit(steps[begin:] - steps[begin], values[begin:], 1)
            grown = slope * (steps[-1] - steps[begin])
            growth[name] = grown / level
            print(
                f'{name}, by a line through the last {len(steps) - begin} readings: {level:.0f} MB, '
                f'{grown:+.1f} MB ({growth[name]:+.2%}), {slope * 1000:+.2f} MB for 1000 {unit}'
            )
        blocks = [reading['python_blocks'] for reading in self.readings]
        print(f"Python's own blocks: {blocks[begin]} after warming up, {blocks[-1]} at last")
        return growth['resident']


class GaugeHook(Hook):
    """Reads memory during a training, and ends it.

    Args:
        gauge (Gauge): Takes the readings.
        minutes (float): How long to train.
        every (int): Iterations between readings.
    """

    priority = 'LOWEST'

    def __init__(self, gauge: Gauge, minutes: float, every: int) -> None:
        self.gauge, self.every = gauge, every
        self.end = time.monotonic() + 60 * minutes

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None
    ) -> None:
        """Read."""
        if self.every_n_train_iters(runner, self.every):
            self.gauge.read(runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """End when it is time."""
        runner.train_loop.stop_training = time.monotonic() > self.end


def train(args: argparse.Namespace, gauge: Gauge) -> str:
    """Train Mask R-CNN on scenes of a quarter to four times their pixels, with validation and checkpoints."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, 'data')
        generate(data, HandwrittenConfig(train_scenes=64, val_scenes=8, train_crops=0, val_crops=0), progress=False)
        cfg = Config.fromfile(ROOT / CONFIG)
        pipeline = cfg.train_dataloader.dataset.pipeline
        pipeline.insert(2, dict(type='RandomResize', scale=(160, 160), ratio_range=(0.5, 2.0), keep_ratio=True))
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            loader.dataset.data_root = f'{data}/'
            loader.update(num_workers=args.workers, persistent_workers=args.workers > 0)
        for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
            evaluator.ann_file = f'{data}/annotations/val.json'
        cfg.train_dataloader.update(batch_size=args.batch_size)
        cfg.train_cfg.update(max_epochs=10**6, val_interval=20)
        cfg.default_hooks.checkpoint.update(interval=20, max_keep_ckpts=1)
        cfg.merge_from_dict(dict(work_dir=f'{folder}/work', log_level='WARNING'))
        runner = Runner.from_cfg(cfg)
        runner.register_hook(GaugeHook(gauge, args.minutes, args.every))
        runner.train()
    return 'iterations'


def predict(args: argparse.Namespace, gauge: Gauge) -> str:
    """Predict on noise at random sizes."""
    predictor = Predictor(args.model, args.checkpoint, runtime=args.runtime, threads=1)
    rng = np.random.default_rng(0)
    for number in range(args.number):
        height, width = rng.integers(args.sides[0], args.sides[1], 2, endpoint=True)
        predictor.predict(rng.integers(0, 256, (height, width, 3), np.uint8)).to_json()
        if (number + 1) % args.every == 0:
            gauge.read(number + 1)
    return 'images'


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=f'{__doc__} Exit code 1: resident memory grew by {LIMIT:.0%} or more after the first third.'
    )
    commands = parser.add_subparsers(dest='command', required=True)
    training = commands.add_parser('train', help='Mask R-CNN on handwritten scenes at several scales')
    training.add_argument('--minutes', type=float, default=30, help='default: %(default)s')
    training.add_argument('--batch-size', type=int, default=4, help='default: %(default)s')
    training.add_argument('--workers', type=int, default=0, help='that load data; default: %(default)s')
    prediction = commands.add_parser('predict', help='with a model of yours, on noise')
    prediction.add_argument('model', help='config file, or an exported model (.onnx)')
    prediction.add_argument('checkpoint', nargs='?', help='checkpoint file, for a config')
    prediction.add_argument('--runtime', choices=['onnxruntime', 'openvino'], help='for an exported model')
    prediction.add_argument('--number', type=int, default=2000, help='of images; default: %(default)s')
    prediction.add_argument('--sides', type=int, nargs=2, default=(65, 640), help='shortest, longest; default: 65 640')
    add_trust_argument(prediction)
    for command in (training, prediction):
        command.add_argument('--every', type=int, default=10, help='steps between readings; default: %(default)s')
        command.add_argument('--trim', action='store_true', help='call malloc_trim before each reading')
        command.add_argument('--out', type=expand_home, help='where the readings go, as JSON')
    return parser.parse_args()


def main() -> None:
    """Run, read and judge."""
    args = parse_args()
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.INFO)
    with one_line_errors():
        gauge = Gauge(args.trim)
        unit = dict(train=train, predict=predict)[args.command](args, gauge)
        if args.out:
            args.out.write_text(json.dumps(gauge.readings))
        if gauge.report(unit) >= LIMIT:
            raise SystemExit(1)


if __name__ == '__main__':
    main()
