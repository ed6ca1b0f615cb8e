#!/usr/bin/env python
"""Draw images of a config's dataset with their annotations, as its pipeline gives them to the model."""

import argparse
from pathlib import Path

from mmengine.visualization import Visualizer

from mmlavit.errors import UserError, one_line_errors
from mmlavit.utils.arguments import add_options_argument, require_screen
from mmlavit.utils.config_files import load_config
from mmlavit.utils.local_files import expand_home
from mmlavit.visualization.browse import browse
from mmlavit.visualization.drawing import write_picture


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=f'{__doc__} Resizing, crops, flips and the other transforms of the pipeline are in the images; '
        'what works on whole batches (Mixup, CutMix) is not. Small images are drawn enlarged.'
    )
    parser.add_argument('config', help='config file of a classifier, detector or segmentor')
    parser.add_argument('--split', choices=['train', 'val', 'test'], default='train', help='default: %(default)s')
    parser.add_argument(
        '--number',
        type=int,
        default=20,
        metavar='N',
        help='how many images, spread evenly over the dataset; default: %(default)s',
    )
    parser.add_argument(
        '--out-dir',
        type=expand_home,
        metavar='DIR',
        help='where images go; default: outputs/<name of the config>_<split>',
    )
    parser.add_argument('--show', action='store_true', help='show them in a window instead (needs a screen)')
    parser.add_argument(
        '--wait-time',
        type=float,
        default=0,
        help='seconds that --show shows an image; default: until the space key is pressed',
    )
    add_options_argument(parser, 'change the config, e.g. train_dataloader.dataset.data_root=/other/coco')
    return parser.parse_args()


def main() -> None:
    """Draw, and save or show."""
    args = parse_args()
    out_dir = args.out_dir or Path('outputs', f'{Path(args.config).stem}_{args.split}')
    with one_line_errors():
        if args.number < 1:
            raise UserError(f'--number {args.number}: expected 1 or more')
        if args.show:
            require_screen('--out-dir')
        window = Visualizer() if args.show else None
        pictures = browse(load_config(args.config, args.cfg_options), args.split, args.number)
        count = 0
        for picture in pictures:
            if window:
                window.show(picture.image[..., ::-1], picture.name, args.wait_time)
            else:
                write_picture(out_dir / f'{picture.name}.png', picture.image)
            print(f'{picture.name}: {picture.size[1]}x{picture.size[0]}', flush=True)
            count += 1
    if not args.show:
        print(f'{count} images -> {out_dir}')


if __name__ == '__main__':
    main()
