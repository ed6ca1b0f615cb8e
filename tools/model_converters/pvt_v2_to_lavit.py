#!/usr/bin/env python
"""Convert a PVTv2 checkpoint to a LaViT backbone checkpoint."""

import argparse
import sys

import torch

from mmlavit.converters.pvt_v2 import PVT_V2_EPS, convert_pvt_v2


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Convert PVTv2 weights (timm or the official repository) to a backbone checkpoint of a LaViT with '
        f"PVTv2's sizes, patch_kernels=(7, 3, 3, 3) and norm_eps={PVT_V2_EPS} in its arch, to be loaded by "
        '--cfg-options model.backbone.init_cfg.checkpoint=OUT.'
    )
    parser.add_argument('source', help='PVTv2 checkpoint')
    parser.add_argument('out', help='file to write')
    parser.add_argument(
        '--num-va-layers',
        type=int,
        nargs=4,
        metavar='N',
        help='vanilla layers of each stage of the LaViT; the layers after them keep only their values '
        '(default: all layers stay vanilla)',
    )
    return parser.parse_args()


def main() -> None:
    """Convert."""
    args = parse_args()
    try:
        checkpoint = torch.load(args.source, map_location='cpu', weights_only=True)
        state_dict = convert_pvt_v2(checkpoint.get('state_dict', checkpoint), args.num_va_layers)
    except (OSError, ValueError) as error:
        sys.exit(f'pvt_v2_to_lavit: {error}')
    torch.save(dict(state_dict={f'backbone.{name}': value for name, value in state_dict.items()}), args.out)
    print(f'{args.out}: {len(state_dict)} tensors')


if __name__ == '__main__':
    main()
