#!/usr/bin/env python
"""Test a trained model as it is, and without its attention residuals, transforms or later attention.

The model has a LaViT, its twin, or a plain vision transformer as backbone.

Nothing is trained, so this tells what a model has come to depend on, not what it could do without.
"""

import argparse
import copy

from mmengine.config import Config
from rich.table import Table

from mmlavit.analysis.ablation import ABLATIONS, require_batches  # registers AblationHook
from mmlavit.engine import run
from mmlavit.errors import UserError, one_line_errors
from mmlavit.models.arch import resolve_arch, resolve_num_va_layers
from mmlavit.utils.arguments import add_options_argument, add_trust_argument, merge_test_args
from mmlavit.utils.config_files import load_config
from mmlavit.utils.config_types import type_name
from mmlavit.utils.console import table_console
from mmlavit.utils.local_files import expand_home

# What a table without --without has.
DEFAULT = ('residual', 'transforms', 'uniform', 'none')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='what --without takes, and the row of the table for it:\n'
        + '\n'.join(f'  {what:<11}{row}' for what, (_, _, row) in ABLATIONS.items())
        + '\ndetails: docs/tools.md',
    )
    parser.add_argument('config', help='config of a classifier, detector or segmentor')
    parser.add_argument('checkpoint', help='its weights')
    parser.add_argument(
        '--without',
        nargs='+',
        choices=list(ABLATIONS),
        metavar='WHAT',
        help=f'see below (default: {" ".join(DEFAULT)}, as far as the model has them)',
    )
    parser.add_argument(
        '--metrics', nargs='+', metavar='NAME', help='columns, such as coco/bbox_mAP (default: all that the test gives)'
    )
    parser.add_argument(
        '--layers',
        nargs='+',
        type=int,
        metavar='N',
        help='of a plain vision transformer: its later layers, counted from 0 (default: those with less attention; '
        'needed if there are none)',
    )
    parser.add_argument(
        '--work-dir', type=expand_home, default='work_dirs/ablation', help='for logs; default: %(default)s'
    )
    add_options_argument(parser, 'change settings of the config')
    add_trust_argument(parser)
    # Those of tools/test.py that this tool has not.
    parser.set_defaults(runtime=None, out=None, show=False, show_dir=None, wait_time=0, tta=False, launcher='none')
    return parser.parse_args()


def choose(cfg: Config, wanted: list[str] | None, layers: list[int] | None) -> tuple[list[str], dict]:
    """Choose what to take away, and the arguments of AblationHook that say from which layers."""
    backbone = cfg.model.get('backbone')
    if backbone is None:
        raise UserError(f'{cfg.model.type} has no backbone of its own; give the config of the model in it')
    kind = type_name(backbone)
    has = list(ABLATIONS)
    if 'later' in backbone:
        raise UserError(
            f'backbone is {kind}, from whose later layers something is taken away already; give the config '
            'of the model that it is compared with'
        )
    if kind in ('LaViT', 'CentredLaViT'):
        if layers is not None:
            raise UserError('--layers is for plain vision transformers; those of a LaViT follow from its config')
        arch = resolve_arch(backbone.get('arch', 'small'))
        num_va_layers = resolve_num_va_layers(backbone.get('num_va_layers'), arch)
        twin = num_va_layers == tuple(arch.depths)
        if twin:
            has = [what for what in has if not ABLATIONS[what].of_transforms]
            num_va_layers = resolve_num_va_layers(None, arch)
        if not backbone.get('attention_residual', True):
            has.remove('residual')
        later = dict(num_va_layers=list(num_va_layers))
    else:
        has.remove('residual')
        if kind != 'WithLessAttention':
            has = [what for what in has if not ABLATIONS[what].of_transforms]
            if layers is None:
                raise UserError(
                    f'backbone is {kind}: say with --layers which layers of it are meant, such as '
                    '--layers 6 7 8 9 10 11, if it is a plain vision transformer'
                )
        later = dict(layers=layers)
    for what in wanted or ():
        require_batches(what, cfg.test_dataloader.get('batch_size', 1))
    if impossible := set(wanted or ()) - set(has):
        raise UserError(
            f'--without {" ".join(sorted(impossible))}: this model has none; expected some of {", ".join(has)}'
        )
    return wanted or [what for what in DEFAULT if what in has], later


def show(value: object) -> str:
    """Word a metric; mmdet has none where nothing was found, and lists for single classes."""
    return '-' if value is None else f'{value:.4g}' if isinstance(value, (int, float)) else str(value)


def main() -> None:
    """Test, and print a table."""
    args = parse_args()
    with one_line_errors():
        if args.checkpoint.endswith('.onnx'):
            raise UserError(f'{args.checkpoint} is an exported model, which cannot be changed; give its checkpoint')
        cfg = merge_test_args(load_config(args.config, args.cfg_options), args)
        without, later = choose(cfg, args.without, args.layers)

        def test(name: str, *hooks: dict) -> dict:
            changed = copy.deepcopy(cfg)
            changed.work_dir = str(args.work_dir / name)
            if name == 'content':  # an average over images of one class would tell the class
                changed.test_dataloader.sampler = dict(type='DefaultSampler', shuffle=True, seed=0)
            changed.custom_hooks = [*(changed.get('custom_hooks') or []), *hooks]
            return run(changed, 'test', args.cfg_options)

        whole = test('whole')
        names = args.metrics or list(whole)
        if unknown := set(names) - set(whole):
            raise UserError(f'the test gives no {", ".join(sorted(unknown))}; expected some of {", ".join(whole)}')
        rows = {'whole': whole}
        try:
            for what in without:
                rows[ABLATIONS[what].row] = test(what, dict(type='AblationHook', what=what, **later))
        finally:  # what has been tested is shown, even if a later part of the model is not as expected
            table = Table('', *names, title=f'{args.config}, {args.checkpoint}')
            for row, metrics in rows.items():
                table.add_row(row, *(show(metrics.get(name)) for name in names))
            table_console(160).print(table)


if __name__ == '__main__':
    main()
