#!/usr/bin/env python
"""Show the feature pyramid as images: the first three principal components of each level of backbone and neck."""

import argparse
from pathlib import Path

from mmengine.logging import MMLogger

from mmlavit.analysis.pyramid import observe_pyramid, plot_pyramid
from mmlavit.analysis.trained import choose_pictures, load_trained, read_pictures
from mmlavit.errors import UserError, one_line_errors
from mmlavit.utils.arguments import add_options_argument, add_picture_arguments, figure
from mmlavit.utils.local_files import require_folder


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=f'{__doc__} Components are those over the positions of one image and one level: colours of '
        'different images or levels cannot be compared.'
    )
    parser.add_argument('config', help='config of a classifier, detector or segmentor')
    parser.add_argument('checkpoint', help='its weights')
    add_picture_arguments(parser, 2)
    parser.add_argument('--out', type=figure, default=Path('outputs/pyramid.png'), help='default: %(default)s')
    add_options_argument(parser, 'change the config, such as test_dataloader.dataset.pipeline.1.scale="(480,360)"')
    return parser.parse_args()


def main() -> None:
    """Run the model and draw."""
    args = parse_args()
    MMLogger.get_current_instance().setLevel('ERROR')
    with one_line_errors():
        trained = load_trained(args.config, args.checkpoint, args.device, args.cfg_options)
        pictures = read_pictures(trained, choose_pictures(trained.cfg, args.images, args.num_images))
        require_folder(args.out.parent, '--out')
        images = [(picture, observe_pyramid(trained.model, picture)) for picture in pictures]
        if not any(pyramid for _, pyramid in images):
            raise UserError(f'the backbone of {args.config} gives no maps; expected tensors (B, C, h, w)')
        plot_pyramid(images, f'{trained.name}: principal components', args.out)
    print(args.out)


if __name__ == '__main__':
    main()
