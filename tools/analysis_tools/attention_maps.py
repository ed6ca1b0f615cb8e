#!/usr/bin/env python
"""Show where the points of images look in all attention layers: a picture for one point, a page for all of them."""

import argparse
from pathlib import Path

from mmengine.logging import MMLogger

from mmlavit.analysis.maps_page import write_maps
from mmlavit.analysis.trained import choose_pictures, load_trained, read_pictures
from mmlavit.errors import UserError, one_line_errors
from mmlavit.utils.arguments import add_options_argument, add_picture_arguments
from mmlavit.utils.local_files import expand_home, require_folder


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=f'{__doc__} The page is one file that needs nothing else: click on the image, or move the point '
        'with the arrow keys.',
        epilog='Of the model, its backbone is looked at: a LaViT, or a plain vision transformer of mmpretrain or timm. '
        'How to read the maps: docs/pictures.md.',
    )
    parser.add_argument('config', help='config of a classifier, detector or segmentor')
    parser.add_argument('checkpoint', help='its weights')
    add_picture_arguments(parser, 1)
    parser.add_argument(
        '--point',
        type=float,
        nargs=2,
        default=(0.5, 0.5),
        metavar=('X', 'Y'),
        help='from the left and from the top of the image, from 0 to 1 (default: the centre)',
    )
    parser.add_argument('--heads', action='store_true', help='draw each head, instead of their mean, into the picture')
    parser.add_argument('--out-dir', type=expand_home, default=Path('outputs'), help='default: %(default)s')
    add_options_argument(parser, 'change the config, such as test_dataloader.dataset.pipeline.1.scale="(480,360)"')
    return parser.parse_args()


def main() -> None:
    """Run the model and write pictures and pages."""
    args = parse_args()
    MMLogger.get_current_instance().setLevel('ERROR')
    with one_line_errors():
        if not all(0 <= place <= 1 for place in args.point):
            raise UserError(f'--point must be two numbers from 0 to 1, got {args.point[0]:g} {args.point[1]:g}')
        trained = load_trained(args.config, args.checkpoint, args.device, args.cfg_options)
        paths = choose_pictures(trained.cfg, args.images, args.num_images)
        require_folder(args.out_dir, '--out-dir')
        for number, picture in enumerate(read_pictures(trained, paths)):
            out = args.out_dir / f'attention_{number}_{picture.path.stem}.png'
            page = write_maps(trained, picture, out, tuple(args.point), args.heads)
            print(f'{picture.path} -> {out}, {page}')


if __name__ == '__main__':
    main()
