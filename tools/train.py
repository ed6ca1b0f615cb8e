"""Train a classifier, detector or segmentor; the config decides which."""

import argparse

from mmlavit.engine import local_rank, run
from mmlavit.errors import one_line_errors
from mmlavit.utils.arguments import add_train_arguments, merge_train_args
from mmlavit.utils.config_files import load_config


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate from auto_scale_lr.base_batch_size to the batch size in use',
    )
    add_train_arguments(parser)
    return parser.parse_args()


def main() -> None:
    """Train."""
    args = parse_args()
    with one_line_errors(local_rank(args.launcher, args.local_rank)):
        cfg = merge_train_args(load_config(args.config, args.cfg_options), args)
        run(cfg, 'train', args.cfg_options, args.local_rank)


if __name__ == '__main__':
    main()
