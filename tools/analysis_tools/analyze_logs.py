#!/usr/bin/env python
"""Draw the curves of one or several trainings into one plot and print how fast they ran."""

import argparse
from pathlib import Path

from rich import box
from rich.table import Column, Table

from mmlavit.analysis.curves import MAIN_KEYS, Log, draw_panels, main_keys, make_panel, resolve_keys
from mmlavit.errors import one_line_errors
from mmlavit.utils.arguments import figure
from mmlavit.utils.console import table_console
from mmlavit.utils.local_files import expand_home, require_folder


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=f'{__doc__} Each key gets a panel, in which every training is a curve. '
        'A training that was resumed in its work dir is one curve.'
    )
    parser.add_argument(
        'logs', type=expand_home, nargs='+', metavar='LOG', help='work dir of a training, or a scalars.json below it'
    )
    parser.add_argument(
        '--keys',
        nargs='+',
        metavar='KEY',
        help="what to draw: names as in the log, or patterns such as 'coco/*' "
        f'(default: those logged of {", ".join(MAIN_KEYS)})',
    )
    parser.add_argument('--legend', nargs='+', metavar='NAME', help='what to call the trainings (default: their paths)')
    parser.add_argument(
        '--out', type=figure, default='outputs/curves.png', metavar='FILE', help='plot to write; default: %(default)s'
    )
    args = parser.parse_args()
    if args.legend and len(args.legend) != len(args.logs):
        parser.error(f'--legend has {len(args.legend)} names for {len(args.logs)} logs')
    return args


def main() -> None:
    """Draw and print."""
    args = parse_args()
    with one_line_errors():
        logs = [Log.read(path) for path in args.logs]
        names = args.legend or [shorten(path) for path in args.logs]
        keys = resolve_keys(args.keys or main_keys(logs), logs)
        require_folder(args.out.parent, '--out')
        draw_panels([make_panel(key, names, logs) for key in keys], args.out, columns=3 if len(keys) > 4 else 2)
    print_times(names, logs)
    print(f'{", ".join(keys)} -> {args.out}')


def shorten(path: Path) -> str:
    """Name a training by its work dir, or one start in it by that start's folder."""
    if path.name != 'scalars.json':
        return str(path)
    return str((path if len(path.parents) > 1 else path.resolve()).parents[1])


def print_times(names: list[str], logs: list[Log]) -> None:
    """Print a table of mean times."""
    numbered = ('iterations', 'step (s)', 'of which data (s)', 'memory (MB)')
    columns = [Column('training', overflow='fold'), *(Column(title, justify='right') for title in numbered)]
    table = Table(*columns, box=box.SIMPLE)
    for name, log in zip(names, logs, strict=True):
        means = log.means()
        numbers = [f'{means[key]:.4f}' if key in means else '-' for key in ('time', 'data_time')]
        # Without a GPU mmengine logs a memory of 0 or none.
        memory = f'{means["memory"]:.0f}' if means.get('memory') else '-'
        table.add_row(name, str(max(row['step'] for row in log.trained)), *numbers, memory)
    # Without a terminal rich would squeeze the table into 80 columns.
    table_console(150).print(table)


if __name__ == '__main__':
    main()
