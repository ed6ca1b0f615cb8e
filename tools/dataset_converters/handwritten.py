"""Generate the handwritten scenes (see docs/handwritten.md); needs scikit-learn, no network."""

import argparse
import sys

from mmlavit.datasets import HandwrittenConfig, generate
from mmlavit.errors import UserError, one_line_errors
from mmlavit.utils.local_files import expand_home


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; every option but root and overwrite is one of the config's."""
    default = HandwrittenConfig()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--root', type=expand_home, default='data/handwritten', help='where to write')
    numbers = dict(
        train_scenes='training images for detection and segmentation',
        val_scenes='validation images for detection and segmentation',
        image_size='side of these images in pixels',
        train_crops='training images for classification',
        val_crops='validation images for classification',
        crop_size='side of these images in pixels',
        seed='another seed gives other images, with the same split of the scans',
    )
    for name, text in numbers.items():
        flag = '--' + name.replace('_', '-')
        parser.add_argument(flag, type=int, default=getattr(default, name), help=text)
    ranges = dict(
        digits='fewest and most digits in an image', digit_size='smallest and largest side of a digit in pixels'
    )
    for name, text in ranges.items():
        parser.add_argument(
            '--' + name.replace('_', '-'),
            type=int,
            nargs=2,
            metavar=('MIN', 'MAX'),
            default=getattr(default, name),
            help=text,
        )
    parser.add_argument('--overwrite', action='store_true', help='replace a dataset made with other options')
    return parser.parse_args(args)


def main(args: list[str] | None = None) -> None:
    """Generate, and print what is there; exit with one line when that is not possible."""
    options = vars(parse_args(args))
    root, overwrite = options.pop('root'), options.pop('overwrite')
    for name in ('digits', 'digit_size'):
        options[name] = tuple(options[name])
    with one_line_errors():
        try:
            print(generate(root, HandwrittenConfig(**options), overwrite))
        except OSError as error:
            raise UserError(str(error)) from error
        except KeyboardInterrupt:
            sys.exit('interrupted: run the same command again to finish')


if __name__ == '__main__':
    main()
