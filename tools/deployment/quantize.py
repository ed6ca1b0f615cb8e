#!/usr/bin/env python
"""Write an exported model in int8, with ranges taken from pictures, or in fp16."""

import argparse

from mmlavit.apis.quantize import PRECISIONS, quantize_onnx
from mmlavit.deployment.quantization import INT8_RUNTIMES
from mmlavit.errors import one_line_errors


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, epilog='What it gains and costs: docs/deploy.md.')
    parser.add_argument('model', help='a model that tools/deployment/export.py wrote (.onnx)')
    parser.add_argument('pictures', nargs='?', help='for int8: an image or a folder of images such as it will see')
    parser.add_argument('--out', required=True, help='where it goes (.onnx)')
    parser.add_argument('--precision', choices=PRECISIONS, default=PRECISIONS[0], help='default: %(default)s')
    parser.add_argument(
        '--runtime',
        choices=INT8_RUNTIMES,
        default=INT8_RUNTIMES[0],
        help='what will run it in int8; default: %(default)s',
    )
    parser.add_argument(
        '--number', type=int, default=64, help='how many pictures are looked at at most; default: %(default)s'
    )
    return parser.parse_args()


def main() -> None:
    """Quantise."""
    args = parse_args()
    with one_line_errors():
        file = quantize_onnx(args.model, args.out, args.precision, args.pictures, args.number, args.runtime)
    print(f'{args.model} -> {file} ({file.stat().st_size / 1e6:.1f} MB)')


if __name__ == '__main__':
    main()
