#!/usr/bin/env python
"""Count parameters and multiply-adds of configs' models: in parts, by role and stage, or side by side."""

import argparse
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from mmengine.logging import MMLogger
from rich import box
from rich.table import Column, Table

from mmlavit.analysis.breakdown import Row, break_down, part_of
from mmlavit.analysis.complexity import DEFAULT_SHAPES, model_complexity
from mmlavit.analysis.flops import Complexity
from mmlavit.errors import one_line_errors
from mmlavit.utils.arguments import add_options_argument
from mmlavit.utils.blame import blame_config
from mmlavit.utils.config_files import load_config
from mmlavit.utils.console import table_console

STAGES = range(4)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Count parameters and multiply-adds of a config's model for one image: all matrix products, "
        'convolutions and attention products. Norms, softmax, activations and resizing are not multiply-adds; they are '
        'reported apart, as the numbers that they write. Nothing is downloaded, and no GPU is needed.',
        epilog='A CONFIG is a file, or one that an installed toolbox brings along, as TOOLBOX::FILE: for instance '
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py. What is counted, and how: docs/flops.md.',
    )
    parser.add_argument('config', metavar='CONFIG', help='config of a classifier, detector or segmentor')
    parser.add_argument(
        '--shape',
        type=int,
        nargs='+',
        metavar='PIXELS',
        help='height and width of the image, or one number for both (default: '
        + ', '.join(f'{h}x{w} for {scope}' for scope, (h, w) in DEFAULT_SHAPES.items())
        + ')',
    )
    parser.add_argument(
        '--breakdown',
        action='store_true',
        help='show what is spent on what: for LaViT by role and stage, for the rest by part of the model',
    )
    parser.add_argument(
        '--compare', nargs='+', metavar='CONFIG', default=[], help='count these, too, with ratios to the first'
    )
    add_options_argument(parser, 'change the first config, such as model.backbone.key_reduction=pool')
    args = parser.parse_args()
    if args.shape is not None:
        if len(args.shape) > 2 or min(args.shape) < 1:
            parser.error('--shape takes one or two positive numbers')
        args.shape = (args.shape[0], args.shape[-1])
    return args


def main() -> None:
    """Count and print."""
    args = parse_args()
    # What is said while a model is built is about its training.
    MMLogger.get_current_instance().setLevel('ERROR')
    warnings.simplefilter('ignore')
    # Without a terminal rich would squeeze the tables into 80 columns.
    console = table_console(150)
    with one_line_errors():
        cfg = load_config(args.config, args.cfg_options)
        shape = args.shape or DEFAULT_SHAPES.get(cfg.get('default_scope'))
        with blame_config(cfg, args.cfg_options):
            first, notes = model_complexity(cfg, shape)
        compared = [(f'{args.config}, changed' if args.cfg_options else args.config, first)]
        for name in args.compare:
            other_cfg = load_config(name)
            with blame_config(other_cfg):
                other, more = model_complexity(other_cfg, shape)
            compared.append((name, other))
            notes += [f'{name}: {note}' for note in more]

    console.print(f'{compared[0][0]}, one image of {shape[0]}x{shape[1]}, {first.params / 1e6:.2f} M parameters')
    if args.breakdown:
        console.print('\nMultiply-adds')
        console.print(breakdown_table(break_down(first.cells)))
        if first.elements:
            console.print('Other work, in numbers written')
            console.print(breakdown_table(break_down(first.elements)))
    elif not args.compare:
        console.print(parts_table(first))
        console.print(f'other work, in numbers written: {in_millions(first.elements)}')
    if args.compare:
        console.print(comparison_table(compared))
    for note in notes:
        console.print(note, style='dim')


def make_table(header: Sequence[str], rows: Iterable[Sequence[str]], last: Sequence[str] = ()) -> Table:
    """Lay out a table: names to the left, numbers to the right, sums last."""
    numbers = [Column(name, justify='right') for name in header]
    table = Table(Column('', overflow='fold'), *numbers, box=box.SIMPLE)
    for row in rows:
        table.add_row(*row)
    if last:
        table.add_section()
        table.add_row(*last)
    return table


def parts_table(complexity: Complexity) -> Table:
    """Show the multiply-adds of the parts of a model."""
    parts = Counter()
    for (path, _), macs in complexity.cells.items():
        parts[part_of(path)] += macs
    rows = [(part, f'{macs / 1e9:.3f}') for part, macs in parts.items()]
    return make_table(['multiply-adds (G)'], rows, ('model', f'{complexity.macs / 1e9:.3f}'))


def breakdown_table(rows: list[Row]) -> Table:
    """Show rows with their stages, in whole numbers: they add up to the last row."""
    whole = Row('model', sum(row.total for row in rows), sum((row.stages for row in rows), Counter()))
    stages = STAGES if whole.stages else ()

    def cells(row: Row) -> list[str]:
        numbers = [f'{row.stages[stage]:,}' if row.stages else '' for stage in stages]
        return [row.name, *numbers, f'{row.total:,}', f'{row.total / whole.total:.1%}']

    header = [*(f'stage {stage + 1}' for stage in stages), 'total', 'share']
    return make_table(header, map(cells, rows), cells(whole))


def comparison_table(compared: Sequence[tuple[str, Complexity]]) -> Table:
    """Show several models side by side, with ratios to the first."""
    first = compared[0][1]
    rows = []
    for name, complexity in compared:
        backbone = sum(macs for (path, _), macs in complexity.cells.items() if part_of(path) == 'backbone')
        params, macs = complexity.params, complexity.macs
        parameters = [f'{number:.2f}' for number in (params / 1e6, params / first.params)]
        giga = [f'{number / 1e9:.3f}' for number in (backbone, macs - backbone, macs)]
        rows.append([name, *parameters, *giga, f'{macs / first.macs:.2f}'])
    header = ['parameters (M)', 'ratio', 'backbone (G)', 'other parts (G)', 'multiply-adds (G)', 'ratio']
    return make_table(header, rows)


def in_millions(elements: Mapping[tuple[str, str], int]) -> str:
    """Write the numbers of each kind in one line."""
    kinds = Counter()
    for (_, kind), count in elements.items():
        kinds[kind] += count
    return ', '.join(f'{kind} {count / 1e6:.1f} M' for kind, count in kinds.items())


if __name__ == '__main__':
    main()
