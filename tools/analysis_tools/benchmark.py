#!/usr/bin/env python
"""Measure time and memory of LaViT and its peers side by side."""

import argparse
import shlex
import sys
from dataclasses import replace

import torch
from rich.console import Console

from mmlavit.analysis.benchmark.measure import compare
from mmlavit.analysis.benchmark.report import (
    Report,
    comparison_rows,
    failures,
    growth_rows,
    runtime_rows,
    terminal_table,
)
from mmlavit.analysis.benchmark.runtimes import EXPORTED, RUNTIMES
from mmlavit.analysis.benchmark.subjects import PRESETS, SUBJECTS, parse_input, resolve_subjects
from mmlavit.analysis.benchmark.worker import DTYPES, Settings, Worker, WorkerError
from mmlavit.analysis.machine import software
from mmlavit.errors import UserError, one_line_errors
from mmlavit.utils.arguments import positive
from mmlavit.utils.console import table_console
from mmlavit.utils.local_files import expand_home, require_folder

GROWTH_SUBJECTS = ['lavit_s', 'lavit_s_pool', 'pvt_v2_b2_mmdet', 'swin_t_mmdet']
GROWTH_INPUTS = [parse_input(text) for text in ('1x224x224', '1x512x512', '1x800x1344', '1x1024x2048')]
GROWTH_MEMORY_BASE = 64  # below the smallest input, so that there is growth to draw


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Measure time and memory of LaViT and its peers side by side, backbones only, with random weights.',
        epilog=f'backbones: {", ".join(SUBJECTS)}; inputs: {", ".join(f"{k} = {v}" for k, v in PRESETS.items())}',
    )
    parser.add_argument(
        '--subjects',
        nargs='+',
        metavar='NAME',
        default=list(SUBJECTS),
        help='backbones, by name or by a config file whose model has it (default: all names)',
    )
    parser.add_argument(
        '--inputs',
        nargs='*',
        metavar='INPUT',
        default=list(PRESETS),
        help='names of inputs, or BATCHxHEIGHTxWIDTH; nothing, with --growth, measures only that (default: all names)',
    )
    parser.add_argument('--mode', choices=['inference', 'train'], default='inference', help='train: forward, backward')
    parser.add_argument(
        '--runtime',
        nargs='+',
        choices=list(RUNTIMES),
        default=['eager'],
        help='what runs every backbone; several are measured side by side (default: eager)',
    )
    parser.add_argument('--dtype', choices=list(DTYPES), default='fp32', help='bf16 and fp16 by autocast')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--threads', type=positive, metavar='N', help='CPU threads (default: as many as torch takes)')
    parser.add_argument('--rounds', type=positive, metavar='N', default=10)
    parser.add_argument(
        '--iterations', type=positive, metavar='N', help='timed iterations in a round (default: 1; on CUDA 10)'
    )
    parser.add_argument('--warmup', type=positive, metavar='N', default=2, help='iterations before the first round')
    parser.add_argument(
        '--ratio-to', metavar='NAME', help='backbone that ratios are to (default: lavit_s, or the first)'
    )
    parser.add_argument(
        '--growth',
        nargs='*',
        metavar='NAME',
        help=f'measure also how cost grows from {GROWTH_INPUTS[0]} to {GROWTH_INPUTS[-1]} '
        f'(default: {" ".join(GROWTH_SUBJECTS)})',
    )
    parser.add_argument('--profile', metavar='NAME', help='instead, list the operators of one backbone by time')
    parser.add_argument(
        '--out-dir', type=expand_home, metavar='DIR', default='work_dirs/benchmark', help='default: %(default)s'
    )
    return parser.parse_args()


def main() -> None:
    """Measure, print and save."""
    args = parse_args()
    with one_line_errors():
        if args.device == 'cuda' and not torch.cuda.is_available():
            raise UserError('--device cuda, but torch finds no GPU; use --device cpu')
        if not args.inputs and (args.growth is None or args.profile):
            raise UserError('--inputs names none; expected at least one, or --growth beside it')
        if args.runtime != ['eager'] and (args.profile or args.growth is not None):
            raise UserError('--profile and --growth measure in eager mode; leave --runtime out, or them')
        exported = [runtime for runtime in args.runtime if runtime in EXPORTED]
        if exported and (args.mode, args.dtype, args.device) != ('inference', 'fp32', 'cpu'):
            raise UserError(f'--runtime {exported[0]} is measured in inference, in fp32 and on the CPU only')
        settings = Settings(
            mode=args.mode,
            dtype=args.dtype,
            device=args.device,
            threads=args.threads or torch.get_num_threads(),
            warmup=args.warmup,
        )
        try:
            (profile if args.profile else benchmark)(args, settings)
        except KeyboardInterrupt:
            sys.exit(f'interrupted; {args.out_dir} has the inputs that were finished, if any')


def profile(args: argparse.Namespace, settings: Settings) -> None:
    """Print the operators of one backbone, for each input."""
    (subject,) = resolve_subjects([args.profile])
    for size in map(parse_input, args.inputs):
        with Worker(subject, size, settings) as worker:
            try:
                worker.call('warm_up')
                table = worker.call('profile', 3, 25)  # iterations, rows
            except WorkerError as error:
                raise UserError(f'{subject.name} failed at {size}: {error}') from None
        print(f'{subject.title}, {size.title}, 3 iterations\n{table}')


def benchmark(args: argparse.Namespace, settings: Settings) -> None:
    """Compare the backbones at each input; print and save after each."""
    subjects = resolve_subjects(args.subjects)
    subjects = [subject.run_by(runtime) for subject in subjects for runtime in args.runtime]
    sizes = [parse_input(text) for text in args.inputs]
    growth_subjects = [] if args.growth is None else resolve_subjects(args.growth or GROWTH_SUBJECTS)
    names = [subject.name for subject in subjects]
    # By its full name, or in the first runtime that measures it.
    wanted = args.ratio_to or 'lavit_s'
    reference = next((name for name in names if name == wanted), None)
    reference = reference or next((subject.name for subject in subjects if subject.backbone == wanted), None)
    if reference is None and args.ratio_to:
        raise UserError(f'--ratio-to {wanted} is not among the backbones measured: {", ".join(names)}')
    reference = reference or names[0]
    require_folder(args.out_dir, '--out-dir')
    report = Report(
        command=shlex.join(['python', 'tools/analysis_tools/benchmark.py', *sys.argv[1:]]),
        reference=reference,
        settings=settings,
        growth_settings=replace(settings, memory_base=GROWTH_MEMORY_BASE),
        rounds=args.rounds,
        iterations=args.iterations or (10 if args.device == 'cuda' else 1),
    )
    # Without a terminal rich would squeeze the tables into 80 columns.
    console = table_console(150)
    for line in (report.conditions(), software(), report.method(), report.command):
        console.print(line, style='dim', highlight=False)

    def measure(subjects, sizes, settings):
        with Console(stderr=True).status('') as status:
            options = dict(rounds=report.rounds, iterations=report.iterations, notify=status.update)
            return compare(subjects, sizes, settings, **options)

    def show(title, rows, comparisons):
        console.print(terminal_table(title, rows))
        report.save(args.out_dir)
        for failure in failures(comparisons):
            console.print(failure, style='red', highlight=False)

    for size in sizes:
        (comparison,) = measure(subjects, [size], settings)
        report.comparisons.append(comparison)
        show(size.title, comparison_rows(comparison, reference), [comparison])
        if rows := runtime_rows(comparison, reference):
            console.print(terminal_table('By runtime', rows))
    if growth_subjects:
        report.growth = measure(growth_subjects, GROWTH_INPUTS, report.growth_settings)
        show('Growth', growth_rows(report.growth), report.growth)
        console.print(report.growth_method(), style='dim', highlight=False)
    console.print(f'Written to {args.out_dir}: report.md, report.json and plots')


if __name__ == '__main__':
    main()
