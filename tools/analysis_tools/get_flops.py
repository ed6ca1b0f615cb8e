#!/usr/bin/env python
"""Print parameters and multiply-adds of a config's model, attention products included."""

import argparse

from mmengine.config import DictAction
from rich import box
from rich.console import Console
from rich.table import Table

from mmlavit.engine import UserError, load_config, one_line_errors
from mmlavit.utils.complexity import DEFAULT_SHAPES, model_complexity
from mmlavit.utils.environment import check_environment


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Parameters and multiply-adds of the model of a config, for one image. Matrix products, '
        'convolutions and attention are counted; norms, activations, softmax, RoIAlign and NMS are not.'
    )
    parser.add_argument('config', help='config file of a classifier, detector or segmentor')
    parser.add_argument(
        '--shape',
        type=int,
        nargs='+',
        metavar='PIXELS',
        help='height and width of the image, or one number for both (default: '
        + ', '.join(f'{h}x{w} for {scope}' for scope, (h, w) in DEFAULT_SHAPES.items())
        + ')',
    )
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override settings')
    args = parser.parse_args()
    if args.shape is not None:
        if len(args.shape) > 2 or min(args.shape) < 1:
            parser.error('--shape takes one or two positive numbers')
        args.shape = (args.shape[0], args.shape[-1])
    return args


def main() -> None:
    """Count and print."""
    args = parse_args()
    with one_line_errors():
        cfg = load_config(args.config, args.cfg_options)
        scope = cfg.get('default_scope')
        if scope not in DEFAULT_SHAPES:
            raise UserError(f'the config has default_scope={scope!r}, expected one of {", ".join(DEFAULT_SHAPES)}')
        check_environment(scope)
        shape = args.shape or DEFAULT_SHAPES[scope]
        complexity = model_complexity(cfg, shape)

    table = Table(box=box.SIMPLE, title=f'{args.config}, one image of {shape[0]}x{shape[1]}')
    table.add_column('')
    table.add_column('multiply-adds (G)', justify='right')
    for name, macs in complexity.parts.items():
        table.add_row(name, f'{macs / 1e9:.3f}')
    table.add_section()
    table.add_row('model', f'{complexity.macs / 1e9:.3f}')
    console = Console()
    console.print(table)
    console.print(f'parameters: {complexity.params / 1e6:.2f} M')
    console.print('[dim]Not counted: norms, activations, softmax, RoIAlign, NMS.[/dim]')


if __name__ == '__main__':
    main()
