#!/usr/bin/env python
"""Measure how alike the attention of successive layers is, and say which layers to make less-attention layers."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmengine.logging import MMLogger
from rich.console import Console
from rich.table import Table

from mmlavit.analysis.attention import LayerAttention, choose_depths, choose_layers, measure_attention
from mmlavit.analysis.complexity import find_config
from mmlavit.analysis.saturation import plot_attention
from mmlavit.engine.teacher import build_teacher, read_images
from mmlavit.errors import UserError, one_line_errors
from mmlavit.utils.arguments import add_trust_argument, load_config
from mmlavit.utils.toolbox import load_toolbox

SCOPES = ('mmdet', 'mmpretrain', 'mmseg')


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
    parser.add_argument('--images', required=True, help='folder of images; the folders in it are searched, too')
    parser.add_argument('--num-images', type=int, default=16, metavar='N', help='at most so many (default: 16)')
    parser.add_argument(
        '--convert', type=int, metavar='N', help='choose N layers (default: half of those that can be converted)'
    )
    parser.add_argument('--against', nargs=2, metavar=('CONFIG', 'CHECKPOINT'), help='measure this model, too')
    parser.add_argument('--out', type=Path, metavar='FILE', help='draw the figures, such as attention.png')
    parser.add_argument('--device', default='cpu', help='default: %(default)s')
    add_trust_argument(parser)
    return parser.parse_args()


def measure(config: str, checkpoint: str, args: argparse.Namespace) -> list[LayerAttention]:
    """Load a model and measure its backbone."""
    cfg = load_config(find_config(config))
    scope = cfg.get('default_scope')
    if scope not in SCOPES:
        raise UserError(f'{config} has default_scope={scope!r}; expected one of {", ".join(SCOPES)}')
    load_toolbox(scope)
    model, _ = build_teacher(cfg.model, scope, checkpoint)
    model.to(args.device)
    return measure_attention(model.backbone, read_images(cfg, model, args.images, args.num_images))


def as_table(name: str, layers: Sequence[LayerAttention]) -> Table:
    """Lay out the statistics."""
    table = Table('layer', 'attention', title=name)
    for column in LayerAttention._fields[2:]:
        table.add_column(column, justify='right')
    for layer in layers:
        values = ('' if value is None else f'{value:.3f}' for value in layer[2:])
        table.add_row(layer.name, 'less' if layer.less else 'vanilla', *values)
    return table


def choice(layers: Sequence[LayerAttention], count: int | None) -> str:
    """Word the line of the config that converts the chosen layers."""
    in_stages = layers[0].name.startswith('stages.')
    able = len(layers) - (len({layer.name.split('.')[1] for layer in layers}) if in_stages else 1)
    count = able // 2 if count is None else count
    if not 0 <= count <= able:
        raise UserError(f'--convert must be from 0 to {able}, the layers that have one before them')
    chosen = f'num_va_layers={choose_depths(layers, count)}' if in_stages else f'layers={choose_layers(layers, count)}'
    return f'To convert {count} of {able} layers: {chosen}'


def main() -> None:
    """Measure, print and draw."""
    args = parse_args()
    MMLogger.get_current_instance().setLevel('ERROR')
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    with one_line_errors():
        if args.num_images < 1:
            raise UserError('--num-images must be positive')
        models = []
        for config, checkpoint in [(args.config, args.checkpoint), *([args.against] if args.against else [])]:
            layers = measure(config, checkpoint, args)
            models.append((Path(config).stem, layers))
            console.print(as_table(Path(config).stem, layers))
            if not any(layer.less for layer in layers):
                console.print(choice(layers, args.convert), soft_wrap=True)
        if args.out is not None:
            plot_attention(models, args.out)


if __name__ == '__main__':
    main()
