#!/usr/bin/env python
"""Export a classifier, detector or segmentor, with its pre- and post-processing, as one ONNX file."""

import argparse

from mmlavit.apis.export import export_onnx
from mmlavit.deployment.onnx import OPSETS
from mmlavit.errors import one_line_errors
from mmlavit.utils.arguments import add_options_argument, add_trust_argument
from mmlavit.utils.config_files import load_config


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, epilog='Inputs, outputs and runtimes: docs/deploy.md.')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', default='model.onnx', help='where it goes; default: %(default)s')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        help='of all images, which makes the graph simpler and faster; default: any',
    )
    parser.add_argument(
        '--opset',
        type=int,
        choices=OPSETS,
        default=OPSETS[-1],
        help="version of ONNX's operators; default: %(default)s",
    )
    add_options_argument(parser, 'change the config, such as model.backbone.key_reduction=pool')
    add_trust_argument(parser)
    return parser.parse_args()


def main() -> None:
    """Export."""
    args = parse_args()
    with one_line_errors():
        cfg = load_config(args.config, args.cfg_options)
        shape = tuple(args.shape) if args.shape else None
        file = export_onnx(cfg, args.checkpoint, args.out, shape, args.opset)
    print(f'{args.config}, {args.checkpoint} -> {file} ({file.stat().st_size / 1e6:.1f} MB)')


if __name__ == '__main__':
    main()
