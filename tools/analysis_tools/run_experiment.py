#!/usr/bin/env python
"""Run an experiment: the trainings and tests of a plan, with several seeds, and a report of what came out.

It can be stopped at any time; the same command goes on from there. The report shows what has been run so far.
"""

import argparse
import shlex
import signal
import sys
from pathlib import Path

import torch

from mmlavit.analysis.experiments.plan import Plan
from mmlavit.analysis.experiments.report import Benchmark, draw_times, write_report
from mmlavit.analysis.experiments.runs import require_runnable, run_plan
from mmlavit.analysis.machine import device_name, software
from mmlavit.errors import UserError, one_line_errors
from mmlavit.utils.arguments import positive
from mmlavit.utils.local_files import expand_home, require_folder


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='Plans: configs/experiments/plans',
    )
    parser.add_argument('plan', help='a file such as configs/experiments/plans/weights_camvid.py')
    parser.add_argument('--arms', nargs='+', default=[], metavar='ARM', help='only these, and what they need')
    parser.add_argument(
        '--seeds',
        nargs='+',
        type=int,
        default=[],
        metavar='SEED',
        help='only these random seeds, of those in the plan; default: all',
    )
    parser.add_argument(
        '--jobs',
        type=positive,
        default=1,
        metavar='N',
        help='commands at a time (default: %(default)s); each gets its share of the processors',
    )
    parser.add_argument('--work-dir', type=expand_home, help='default: work_dirs/experiments/<name of the plan>')
    parser.add_argument('--out-dir', type=expand_home, help='where the report goes; default: the work dir')
    parser.add_argument(
        '--times',
        nargs='+',
        type=expand_home,
        default=[],
        metavar='REPORT',
        help='also draw results against time, times.png: report.json of benchmark.py with the configs of the arms',
    )
    parser.add_argument(
        '--report-only',
        action='store_true',
        help='run nothing, report what has ended; needs the work dir of an earlier run',
    )
    return parser.parse_args()


def main() -> None:
    """Run and report."""
    args = parse_args()
    with one_line_errors():
        plan = Plan.read(args.plan)
        arms = plan.choose(args.arms, args.seeds)
        root = args.work_dir or Path('work_dirs/experiments') / plan.name
        out_dir = args.out_dir or root
        if args.report_only and not root.is_dir():
            raise UserError(f'{root} does not exist: nothing of this plan has been run; leave out --report-only')
        require_folder(root, '--work-dir')
        require_folder(out_dir, '--out-dir')
        benchmarks = [Benchmark.read(file) for file in args.times]
        if not args.report_only:
            require_runnable(plan, arms, root)  # else a report that is there would be replaced by a poorer one
        command = f'python {shlex.join(sys.argv)}'
        device = device_name('cuda' if torch.cuda.is_available() else 'cpu')
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        try:
            if not args.report_only:
                run_plan(plan, arms, root, args.jobs, f'{device} ({software()})')
        except KeyboardInterrupt:
            print('interrupted; the same command goes on from there', file=sys.stderr)
            sys.exit(128 + signal.SIGINT)
        finally:
            write_report(plan, root, out_dir, command)
        print(out_dir / 'report.md')
        if args.times:
            draw_times(plan, root, benchmarks, out_dir / 'times.png')
            print(out_dir / 'times.png')


if __name__ == '__main__':
    main()
