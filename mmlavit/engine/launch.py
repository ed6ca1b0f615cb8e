"""``torchrun`` with short endings: a failed process is named in one line, under its own message.

Used by ``tools/dist_train.sh`` and ``tools/dist_test.sh``; takes the options of
``python -m torch.distributed.run``.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
from pathlib import Path

import torch
from torch.distributed import DistNetworkError, DistStoreError, run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from mmlavit.errors import STOPPED_CODE, USER_ERROR_CODE
from mmlavit.utils.processors import count_processors

from .hooks.stop_hook import STOPPED_FILE


def main(argv: list[str] | None = None) -> int:
    """Start the processes and wait for them.

    Args:
        argv (list[str], optional): Options of ``torch.distributed.run``; default: the command line's.

    Returns:
        int: Exit code: 0, or that of the process which failed first; after a signal ``STOPPED_CODE``, if the training
        has stopped as :class:`~mmlavit.engine.hooks.StopHook` does, else 128 plus the signal.
    """
    args = run.parse_args(argv)
    if args.nproc_per_node == 'gpu' and not torch.cuda.is_available():
        print('error: no GPU is available; give the number of processes instead of gpu', file=sys.stderr)
        return USER_ERROR_CODE
    os.environ.setdefault('OMP_NUM_THREADS', str(threads_per_process(args.nproc_per_node)))
    if args.max_restarts and args.rdzv_backend == 'static':
        _renew_stores(args)
    # What its agents say about a failure is in our line.
    logging.getLogger('torch.distributed.elastic').setLevel(logging.CRITICAL)
    if args.nnodes != '1':
        # torch waits for 15 minutes without saying so.
        print(f'node {args.node_rank} of {args.nnodes} meets the others at {_address(args)}', flush=True)
    with tempfile.TemporaryDirectory() as folder:
        stopped = Path(folder, 'stopped')
        os.environ[STOPPED_FILE] = str(stopped)
        try:
            run.run(args)
        except SignalException as error:
            # torch has passed the signal on, and given the processes 30 seconds.
            return STOPPED_CODE if stopped.exists() else _report_signal(error.sigval)
        except ChildFailedError as error:
            return _report(error)
        except (DistNetworkError, DistStoreError) as error:
            print(f'error: no rendezvous at {_address(args)} ({_first_line(error)}); {_advice(args)}', file=sys.stderr)
            return USER_ERROR_CODE
    return 0


def threads_per_process(processes: str) -> int:
    """Share the cores of this machine: all of them without a GPU, else one each as torchrun does.

    Args:
        processes (str): Number of processes on this machine, or a word of torchrun's such as 'auto'.

    Returns:
        int: Threads of one process, at least 1.
    """
    if torch.cuda.is_available() or not processes.isdigit():
        return 1
    return max(1, count_processors() // max(1, int(processes)))


def _renew_stores(args: argparse.Namespace) -> None:
    """Have the processes of each attempt meet at a store of their own.

    By default torchrun keeps one store for all attempts; there, those of the second find addresses that those of the
    first have left, and wait for them in vain.
    """
    args.rdzv_backend, args.rdzv_endpoint = 'c10d', _address(args)
    os.environ['TORCH_DISABLE_SHARE_RDZV_TCP_STORE'] = '1'


def _report(error: ChildFailedError) -> int:
    """Say which process failed first, unless it has already said all there is; give its code."""
    rank, failure = error.get_first_failure()
    if failure.exitcode in (USER_ERROR_CODE, STOPPED_CODE):
        return failure.exitcode
    if failure.exitcode < 0:
        reason = f'was ended by {signal.Signals(-failure.exitcode).name}'
        if failure.exitcode == -signal.SIGKILL:
            reason += ' (out of memory?)'
    else:
        reason = f'failed with exit code {failure.exitcode}'
    print(f'error: process {rank} {reason}; its messages are above', file=sys.stderr)
    return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode


def _report_signal(number: signal.Signals) -> int:
    """Say that the processes were ended before they could stop by themselves; give the code."""
    print(f'error: ended by {number.name}', file=sys.stderr)
    return 128 + number


def _address(args: argparse.Namespace) -> str:
    """Where the nodes meet."""
    return f'{args.master_addr}:{args.master_port}'


def _advice(args: argparse.Namespace) -> str:
    """Say what to look at when the nodes did not meet."""
    if args.nnodes == '1':
        return 'is the port taken? choose another with PORT=...'
    return (
        f'start the same command on {args.nnodes} nodes, with NODE_RANK=0 at MASTER_ADDR, 1 on the next and so on, '
        'and a PORT that is free there and open to the others'
    )


def _first_line(error: Exception) -> str:
    """Cut the message of ``error`` to its first line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


if __name__ == '__main__':
    sys.exit(main())
