#!/usr/bin/env python
"""Print a config as a run would see it: bases merged, --cfg-options applied."""

import argparse

from mmlavit.errors import UserError, one_line_errors
from mmlavit.utils.arguments import add_options_argument
from mmlavit.utils.config_files import load_config
from mmlavit.utils.local_files import expand_home, require_folder

FORMATS = ('.py', '.json', '.yml', '.yaml')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    add_options_argument(parser, 'change the config, as in train.py, e.g. model.backbone.arch=tiny')
    parser.add_argument(
        '--save-path',
        type=expand_home,
        metavar='FILE',
        help=f'write it to a file instead, ending in {", ".join(FORMATS)}',
    )
    return parser.parse_args()


def main() -> None:
    """Print or save."""
    args = parse_args()
    with one_line_errors():
        cfg = load_config(args.config, args.cfg_options)
        if args.save_path is None:
            print(cfg.pretty_text)
            return
        if args.save_path.suffix not in FORMATS:
            raise UserError(f'--save-path {args.save_path}: expected a file ending in {", ".join(FORMATS)}')
        require_folder(args.save_path.parent, '--save-path')
        if args.save_path.exists() and args.save_path.samefile(args.config):
            raise UserError(f'--save-path {args.save_path} is the config itself; expected another file')
        cfg.dump(str(args.save_path))
    print(f'{args.config} -> {args.save_path}')


if __name__ == '__main__':
    main()
