#!/usr/bin/env python
"""Convert a PVTv2 checkpoint, of a backbone or of a whole detector or segmentor, to one of a LaViT."""

import argparse
import io

import torch

from mmlavit.converters.pvt_v2 import convert_pvt_v2
from mmlavit.errors import UserError, one_line_errors
from mmlavit.utils.arguments import add_trust_argument
from mmlavit.utils.checkpoint import find_checkpoint, load_checkpoint
from mmlavit.utils.local_files import expand_home, write_file


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=f'{__doc__} Its parameters may have the names of timm, of the official repository, of mmdet or of '
        "transformers; mmseg's MiT (SegFormer) is read, too. The result fits arch='pvt_v2_b0' to 'pvt_v2_b5' or "
        "'mit_b0' to 'mit_b5', with any num_va_layers: less-attention layers leave out queries and keys. A backbone "
        'is loaded by '
        '--cfg-options model.backbone.init_cfg.checkpoint=OUT, a whole model by load_from=OUT.'
    )
    parser.add_argument('source', help='checkpoint of PVTv2 or MiT: a file (.pth or .safetensors) or an address')
    parser.add_argument('out', type=expand_home, help='file to write (.pth)')
    add_trust_argument(parser)
    return parser.parse_args()


def main() -> None:
    """Convert."""
    args = parse_args()
    with one_line_errors():
        if args.out.suffix != '.pth':
            raise UserError(f'{args.out}: expected a name that ends in .pth')
        if not args.out.parent.is_dir():
            raise UserError(f'the folder {args.out.parent} does not exist; make it first')
        if args.out.exists() and args.out.samefile(find_checkpoint(args.source)):
            raise UserError(f'{args.out} would overwrite its source; choose another file')
        found = convert_pvt_v2(load_checkpoint(args.source)['state_dict'])
        backbone = {f'backbone.{name}': value for name, value in found.backbone.items()}
        content = io.BytesIO()
        torch.save(dict(state_dict={**backbone, **found.others}), content)
        write_file(args.out, content.getvalue())
    print(f'{args.source}: names as those of {found.layout}')
    print(f'{args.out}: {len(backbone)} tensors of the backbone, {len(found.others)} of neck and heads')
    if found.classifier:
        print(f'left out, the classification head: {len(found.classifier)} tensors, such as {found.classifier[0]}')


if __name__ == '__main__':
    main()
