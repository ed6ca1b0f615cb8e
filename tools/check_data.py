#!/usr/bin/env python
"""Check before a long run that datasets are whole, or that the data of a config can be trained with."""

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from mmlavit.datasets.check.config import check_config
from mmlavit.datasets.check.named import DATA_SETS
from mmlavit.errors import UserError, one_line_errors
from mmlavit.utils.arguments import add_options_argument
from mmlavit.utils.config_files import load_config
from mmlavit.utils.local_files import expand_home


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    sources = '\n'.join(
        f'  {name:<12} {data.title}, expected at {data.root}\n'
        f'  {"":<12}   from: {data.source}\n'
        f'  {"":<12}   terms: {data.terms}'
        for name, data in DATA_SETS.items()
    )
    parser = argparse.ArgumentParser(
        description=f'{__doc__}\nPrints a line for each finding, with what to do. '
        'Exit code 0: nothing is wrong; 1: something is; 2: wrong usage.\n'
        'Nothing is downloaded: the terms of the datasets are for you to accept.',
        epilog=f'datasets:\n{sources}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'names', nargs='+', metavar='NAME|CONFIG', help=f'{", ".join(DATA_SETS)}, or config files (.py)'
    )
    parser.add_argument(
        '--root', type=expand_home, metavar='DIR', help='where the dataset is, if it is not where configs expect it'
    )
    parser.add_argument(
        '--decode',
        default='20',
        metavar='N|all',
        help='decode N images of each folder or dataset, drawn at random, or all; default: %(default)s, 0 for none. '
        'With a config, all images are opened, and decoded if they do not end as they should',
    )
    add_options_argument(parser, 'change the config, e.g. train_dataloader.dataset.data_root=DIR')
    return parser.parse_args()


def main() -> None:
    """Check and print."""
    args = parse_args()
    with one_line_errors():
        decode = parse_number(args.decode)
        configs = [name for name in args.names if name.endswith('.py')]
        unknown = [name for name in args.names if name not in configs and name not in DATA_SETS]
        if unknown:
            raise UserError(f'{unknown[0]} is neither a config (.py) nor one of {", ".join(DATA_SETS)}')
        if args.root and (len(args.names) > 1 or configs):
            named = f'{len(args.names)} are named' if len(args.names) > 1 else f'{configs[0]} is a config'
            raise UserError(f'--root {args.root} is for one dataset, but {named}')
        if args.cfg_options and not configs:
            raise UserError('--cfg-options changes a config, but none is named')
        whole = True
        for name in args.names:
            if name in configs:
                cfg = load_config(name, args.cfg_options)
                whole &= show(name, check_config(cfg, decode), 'no fault in its data')
            else:
                whole &= check(name, args.root or Path(DATA_SETS[name].root), decode)
    sys.exit(0 if whole else 1)


def parse_number(text: str) -> int | None:
    """Give the number of images to decode; None for all."""
    if text == 'all':
        return None
    if not text.isdigit():
        raise UserError(f'--decode {text}: expected 0 or more, or all')
    return int(text)


def check(name: str, root: Path, decode: int | None) -> bool:
    """Check a dataset and print what was found; tell whether it is whole."""
    data = DATA_SETS[name]
    if not root.is_dir():
        print(f'{name}: {root} does not exist: get {data.title} from {data.source}. Terms: {data.terms}', flush=True)
        return False
    return show(name, data.check(root, sys.maxsize if decode is None else decode), f'{root} is whole', data.source)


def show(name: str, findings: Iterable[str], good: str, source: str = '') -> bool:
    """Print findings, then their number; tell whether there are none, notes aside."""
    start = time.monotonic()
    faults = 0
    for finding in findings:
        print(f'{name}: {finding}', flush=True)
        faults += not finding.startswith('note:')
    seconds = time.monotonic() - start
    if faults:
        rest = f'. Source: {source}' if source else ''
        print(f'{name}: {faults} finding{"s" if faults > 1 else ""} ({seconds:.0f} s){rest}', flush=True)
    else:
        print(f'{name}: OK, {good} ({seconds:.0f} s)', flush=True)
    return not faults


if __name__ == '__main__':
    main()
