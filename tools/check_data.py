#!/usr/bin/env python
"""Check before a long run that data sets are whole: folders, numbers of files, annotations."""

import argparse
import sys
import time
from pathlib import Path

from mmlavit.datasets.check import DATA_SETS
from mmlavit.errors import UserError, one_line_errors


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
        'Exit code 0: whole; 1: something is wrong; 2: wrong usage.\n'
        'Nothing is downloaded: the terms of the data sets are for you to accept.',
        epilog=f'data sets:\n{sources}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('names', nargs='+', choices=list(DATA_SETS), metavar='NAME', help=', '.join(DATA_SETS))
    parser.add_argument(
        '--root', type=Path, metavar='DIR', help='where the data set is, if it is not where configs expect it'
    )
    parser.add_argument(
        '--decode',
        type=int,
        default=20,
        metavar='N',
        help='decode N images of each folder, drawn at random; default: %(default)s, 0 for none',
    )
    return parser.parse_args()


def main() -> None:
    """Check and print."""
    args = parse_args()
    whole = True
    with one_line_errors():
        if args.decode < 0:
            raise UserError(f'--decode {args.decode}: expected 0 or more')
        if args.root and len(args.names) > 1:
            raise UserError(f'--root {args.root} is for one data set, but {len(args.names)} are named')
        for name in args.names:
            whole &= check(name, args.root or Path(DATA_SETS[name].root), args.decode)
    sys.exit(0 if whole else 1)


def check(name: str, root: Path, decode: int) -> bool:
    """Check a data set and print what was found; tell whether it is whole."""
    data = DATA_SETS[name]
    if not root.is_dir():
        print(f'{name}: {root} does not exist: get {data.title} from {data.source}. Terms: {data.terms}', flush=True)
        return False
    start = time.monotonic()
    findings = 0
    for finding in data.check(root, decode):
        print(f'{name}: {finding}', flush=True)
        findings += 1
    seconds = time.monotonic() - start
    if findings:
        print(
            f'{name}: {findings} finding{"s" if findings > 1 else ""} ({seconds:.0f} s). Source: {data.source}',
            flush=True,
        )
    else:
        print(f'{name}: OK, {root} is whole ({seconds:.0f} s)', flush=True)
    return not findings


if __name__ == '__main__':
    main()
