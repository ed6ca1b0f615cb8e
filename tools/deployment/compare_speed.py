#!/usr/bin/env python
"""Time a whole model, from image to result, as its toolbox runs it and exported in each runtime.

Each runs in a process of its own, and they take turns: a round is one prediction of each. Shown are medians.
"""

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

from mmlavit.errors import UserError, one_line_errors
from mmlavit.utils.arguments import add_trust_argument
from mmlavit_serve.runtimes import RUNTIMES

PAUSE_SECONDS = 0.05  # after a turn, until the threads that have worked are asleep


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='its weights')
    parser.add_argument('model', help='the same, exported (.onnx)')
    parser.add_argument('--shape', type=int, nargs=2, default=(800, 1344), metavar=('H', 'W'), help='size of the image')
    parser.add_argument(
        '--runtime', nargs='+', choices=list(RUNTIMES), default=list(RUNTIMES), help='default: %(default)s'
    )
    parser.add_argument('--threads', type=int, default=2, metavar='N', help='CPU threads (default: %(default)s)')
    parser.add_argument(
        '--rounds', type=int, default=10, metavar='N', help='default: %(default)s, after 2 untimed ones'
    )
    add_trust_argument(parser)
    return parser.parse_args()


def start(model: Sequence[str], runtime: str, threads: int) -> None:
    """Load a model in a process of its own."""
    global predictor
    from mmlavit_serve import Predictor

    predictor = Predictor(*model, runtime=runtime, threads=threads)


def predict(image: np.ndarray) -> float:
    """Predict on an image of shape (H, W, 3); the seconds that it took."""
    before = time.perf_counter()
    predictor.predict(image)
    return time.perf_counter() - before


def main() -> None:
    """Compare."""
    args = parse_args()
    with one_line_errors():
        if args.rounds < 1 or args.threads < 1 or min(args.shape) < 1:
            raise UserError('--rounds, --threads and --shape must be positive')
        image = np.random.default_rng(0).integers(0, 256, (*args.shape, 3), np.uint8)
        models = {'torch': (args.config, args.checkpoint), **dict.fromkeys(args.runtime, (args.model,))}
        pools = {runtime: ProcessPoolExecutor(1, get_context('spawn')) for runtime in models}
        for runtime, model in models.items():
            pools[runtime].submit(start, model, runtime, args.threads).result()  # an error there is raised here
        seconds = {runtime: [] for runtime in pools}
        for _ in range(args.rounds + 2):
            for runtime, pool in pools.items():
                seconds[runtime].append(pool.submit(predict, image).result())
                time.sleep(PAUSE_SECONDS)
        for pool in pools.values():
            pool.shutdown()
    medians = {runtime: median(times[2:]) for runtime, times in seconds.items()}
    table = Table(title=f'{args.shape[0]}x{args.shape[1]}, {args.threads} threads, {args.rounds} rounds')
    for name in ('runtime', 'ms', 'of torch'):
        table.add_column(name, justify='left' if name == 'runtime' else 'right')
    for runtime, value in medians.items():
        table.add_row(runtime, f'{1000 * value:.0f}', f'{value / medians["torch"]:.2f}')
    Console().print(table)


if __name__ == '__main__':
    main()
