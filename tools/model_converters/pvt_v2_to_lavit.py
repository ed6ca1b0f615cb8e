#!/usr/bin/env python
"""Convert a PVTv2 checkpoint to a LaViT backbone checkpoint."""

import argparse
from pathlib import Path

import torch

from mmlavit.converters.pvt_v2 import PVT_V2_EPS, convert_pvt_v2
from mmlavit.errors import UserError, one_line_errors
from mmlavit.utils.arguments import add_trust_argument
from mmlavit.utils.checkpoint import load_checkpoint


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Convert PVTv2 weights (timm or the official repository) to a backbone checkpoint of a LaViT with '
        f"PVTv2's sizes, patch_kernels=(7, 3, 3, 3) and norm_eps={PVT_V2_EPS} in its arch, to be loaded by "
        '--cfg-options model.backbone.init_cfg.checkpoint=OUT.'
    )
    parser.add_argument('source', help='PVTv2 checkpoint (.pth or .safetensors)')
    parser.add_argument('out', type=Path, help='file to write (.pth)')
    parser.add_argument(
        '--num-va-layers',
        type=int,
        nargs=4,
        metavar='N',
        help='vanilla layers of each stage of the LaViT; the layers after them keep only their values '
        '(default: all layers stay vanilla)',
    )
    add_trust_argument(parser)
    return parser.parse_args()


def main() -> None:
    """Convert."""
    args = parse_args()
    with one_line_errors():
        if not args.out.parent.is_dir():
            raise UserError(f'the folder {args.out.parent} does not exist; make it first')
        state_dict = convert_pvt_v2(load_checkpoint(args.source)['state_dict'], args.num_va_layers)
        torch.save(dict(state_dict={f'backbone.{name}': value for name, value in state_dict.items()}), args.out)
    print(f'{args.out}: {len(state_dict)} tensors')


if __name__ == '__main__':
    main()
