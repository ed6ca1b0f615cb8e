#!/usr/bin/env python
"""Measure how alike the attention of successive layers is, and say which layers to make less-attention layers."""

import argparse
from collections.abc import Sequence

from mmengine.logging import MMLogger
from rich.table import Table

from mmlavit.analysis.attention import LayerAttention, choose_depths, choose_layers, measure_attention
from mmlavit.analysis.saturation import plot_attention
from mmlavit.analysis.trained import choose_pictures, load_trained, read_pictures
from mmlavit.errors import UserError, one_line_errors
from mmlavit.models.arch import resolve_arch
from mmlavit.utils.arguments import add_picture_arguments, figure
from mmlavit.utils.config_types import type_name
from mmlavit.utils.console import table_console
from mmlavit.utils.local_files import require_folder


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Of the model, its backbone is looked at: a LaViT, or a plain vision transformer of mmpretrain or timm. '
        'What the columns are: docs/extending.md. A CONFIG is a file, or one that an installed toolbox brings '
        'along, as mmpretrain::vision_transformer/vit-base-p16_64xb64_in1k.py.',
    )
    parser.add_argument('config', help='config of a classifier, detector or segmentor')
    parser.add_argument('checkpoint', help='its weights')
    add_picture_arguments(parser, 16)
    parser.add_argument(
        '--convert', type=int, metavar='N', help='choose N layers (default: half of those that can be converted)'
    )
    parser.add_argument(
        '--compare',
        nargs=2,
        action='append',
        default=[],
        metavar=('CONFIG', 'CHECKPOINT'),
        help='measure this model, too, on the same images, such as the twin; may be repeated',
    )
    parser.add_argument('--out', type=figure, metavar='FILE', help='draw the figures, such as attention.png')
    return parser.parse_args()


def as_table(name: str, layers: Sequence[LayerAttention]) -> Table:
    """Lay out the statistics."""
    table = Table('layer', 'attention', title=name)
    for column in LayerAttention._fields[2:]:
        table.add_column(column, justify='right')
    for layer in layers:
        values = ('' if value is None else f'{value:.3f}' for value in layer[2:])
        table.add_row(layer.name, 'less' if layer.less else 'vanilla', *values)
    return table


def choice(layers: Sequence[LayerAttention], count: int | None, depths: Sequence[int]) -> str:
    """Word the line of the config that converts the chosen layers; stages that are not run stay as they are."""
    in_stages = layers[0].name.startswith('stages.')
    able = len(layers) - (len({layer.name.split('.')[1] for layer in layers}) if in_stages else 1)
    count = able // 2 if count is None else count
    if not 0 <= count <= able:
        raise UserError(f'--convert must be from 0 to {able}, the layers that have one before them')
    if in_stages:
        run = choose_depths(layers, count)
        chosen = f'num_va_layers={[*run, *depths[len(run) :]]}'
    else:
        chosen = f'layers={choose_layers(layers, count)}'
    return f'To convert {count} of {able} layers: {chosen}'


def main() -> None:
    """Measure, print and draw."""
    args = parse_args()
    MMLogger.get_current_instance().setLevel('ERROR')
    console = table_console(120)
    with one_line_errors():
        if args.out is not None:
            require_folder(args.out.parent, '--out')
        models, paths = [], None
        for config, checkpoint in [(args.config, args.checkpoint), *args.compare]:
            trained = load_trained(config, checkpoint, args.device)
            paths = paths or choose_pictures(trained.cfg, args.images, args.num_images)
            pictures = read_pictures(trained, paths)
            layers = measure_attention(trained.model.backbone, (picture.inputs for picture in pictures))
            models.append((trained.name, layers))
            console.print(as_table(trained.name, layers))
            if any(layer.less for layer in layers):
                console.print(
                    'It has less attention already, so no layers to convert are named: measure its twin for that.'
                )
            else:
                backbone = trained.cfg.model.backbone
                depths = resolve_arch(backbone.get('arch', 'small')).depths if type_name(backbone) == 'LaViT' else ()
                console.print(choice(layers, args.convert, depths), soft_wrap=True)
        if args.out is not None:
            plot_attention(models, args.out)


if __name__ == '__main__':
    main()
