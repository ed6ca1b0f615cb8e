#!/usr/bin/env python
"""Make a checkpoint of a training ready to be given away: weights, classes and config only."""

import argparse
import math

from mmlavit.errors import UserError, one_line_errors
from mmlavit.utils.arguments import add_trust_argument
from mmlavit.utils.checkpoint import find_checkpoint, find_shards, load_checkpoint
from mmlavit.utils.local_files import expand_home
from mmlavit.utils.publishing import find_paths, save_published, strip_checkpoint


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=f'{__doc__} Removed are the optimizer, schedules, log and states of hooks, and launcher, '
        'load_from, resume and work_dir from the config. Other paths of the machine in it, such as data_root, stay and '
        'are listed. The first 8 digits of the SHA-256 of the file become part of its name, which mim and torch.hub '
        'check after a download. The result is what --cfg-options model.backbone.init_cfg.checkpoint=FILE, test.py and '
        'image_demo.py take.'
    )
    parser.add_argument('checkpoint', help='checkpoint of a training')
    parser.add_argument(
        'out',
        type=expand_home,
        help='such as DIR/lavit_s.pth or DIR/lavit_s.safetensors; written is DIR/lavit_s-<hash>.pth',
    )
    parser.add_argument(
        '--weights',
        choices=['ema', 'raw'],
        help='of a training with EMAHook: the averaged weights or those before averaging '
        '(default: the averaged ones if there are any; they are what test.py measures)',
    )
    parser.add_argument(
        '--half', action='store_true', help='round to half precision: half the size; models load it in their own'
    )
    parser.add_argument(
        '--shard-size',
        type=float,
        metavar='MB',
        help='write several safetensors files, of at most so many megabytes of weights each; any of them can be named '
        'as the checkpoint, with the others beside it',
    )
    add_trust_argument(parser)
    return parser.parse_args()


def main() -> None:
    """Load, strip and write."""
    args = parse_args()
    with one_line_errors():
        if args.out.suffix not in ('.pth', '.safetensors'):
            raise UserError(f'{args.out}: expected a name that ends in .pth or .safetensors')
        if args.shard_size is not None and (args.out.suffix != '.safetensors' or not args.shard_size > 0):
            raise UserError('--shard-size must be positive, and is for names that end in .safetensors')
        if not args.out.parent.is_dir():
            raise UserError(f'the folder {args.out.parent} does not exist; make it first')
        checkpoint = load_checkpoint(args.checkpoint)
        published = strip_checkpoint(checkpoint, args.weights, args.half)
        files = save_published(published, args.out, math.inf if args.shard_size is None else args.shard_size * 1e6)
    averaged = 'ema_state_dict' in checkpoint
    kind = 'weights' if not averaged else 'raw weights' if args.weights == 'raw' else 'averaged (EMA) weights'
    removed = ', '.join(key for key in checkpoint if key not in published) or 'nothing'
    before, after = (
        sum(path.stat().st_size for path in paths) for paths in (find_shards(find_checkpoint(args.checkpoint)), files)
    )
    print(*files, sep='\n', end=': ')
    print(f'{len(published["state_dict"])} tensors, {kind}, {before / 1e6:.1f} -> {after / 1e6:.1f} MB')
    print(f'removed: {removed}')
    if paths := find_paths(published):
        print(f'the config in it names {", ".join(paths)}; use relative paths in the config if nobody is to see them')


if __name__ == '__main__':
    main()
