"""Test a classifier, detector or segmentor; the config decides which."""

import argparse
from pathlib import Path

from mmlavit.engine import local_rank, run
from mmlavit.errors import one_line_errors
from mmlavit.utils.arguments import add_common_arguments, merge_test_args
from mmlavit.utils.config_files import load_config
from mmlavit.utils.local_files import expand_home, require_folder


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file, or a model that tools/deployment/export.py wrote (.onnx)')
    parser.add_argument(
        '--runtime', choices=['onnxruntime', 'openvino'], help='what runs an exported model; default: onnxruntime'
    )
    parser.add_argument(
        '--out',
        metavar='FILE.pkl|DIR',
        help='keep the predictions: in a pickle file (FILE.pkl, any task), or as a folder of label maps (segmentation)',
    )
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument(
        '--show-dir',
        metavar='DIR',
        help='draw predictions into this folder (for segmentation, in DIR/vis_data/vis_image)',
    )
    parser.add_argument('--wait-time', type=float, default=2, help='seconds that --show shows an image')
    parser.add_argument(
        '--tta', action='store_true', help='test-time augmentation as in tta_model and tta_pipeline of the config'
    )
    add_common_arguments(parser)
    return parser.parse_args()


def main() -> None:
    """Test."""
    args = parse_args()
    with one_line_errors(local_rank(args.launcher, args.local_rank)):
        if args.out:
            args.out = str(expand_home(args.out))
        cfg = merge_test_args(load_config(args.config, args.cfg_options), args)
        if args.out:  # before the test, not when its results are written
            require_folder(Path(args.out).parent if args.out.endswith(('.pkl', '.pickle')) else args.out, '--out')
        run(cfg, 'test', args.cfg_options, args.local_rank)


if __name__ == '__main__':
    main()
