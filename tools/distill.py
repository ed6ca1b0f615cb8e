"""Train a student with less attention to do what a teacher does, on a folder of images without labels.

The student takes the teacher's weights where it has room for them (a PVTv2, a LaViT of vanilla layers or a plain
transformer with its sizes, necks and heads of the same shape; with --fit-images, its transforms are fitted to the
teacher's attention), and then learns the teacher's maps and class scores. The result is an ordinary checkpoint of the
student's config; start.pth in the work dir is the student before the first iteration.
"""

import argparse
import os.path as osp
from pathlib import Path

from mmlavit.apis.distill import distillation_config, keep_options
from mmlavit.engine import local_rank, run
from mmlavit.errors import UserError, one_line_errors
from mmlavit.utils.arguments import add_train_arguments, merge_train_args
from mmlavit.utils.config_files import load_config


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', metavar='student', help='config file of the student, with a LaViT or WithLessAttention as backbone'
    )
    parser.add_argument(
        'teacher',
        help='config of the teacher: a file, or mmdet::FILE of an installed toolbox',
    )
    parser.add_argument('checkpoint', help='weights of the teacher')
    parser.add_argument(
        '--images', type=osp.expanduser, required=True, help='folder of images; the folders in it are searched, too'
    )
    parser.add_argument('--iters', type=int, required=True, help='iterations')
    parser.add_argument(
        '--layerwise-iters',
        type=int,
        default=0,
        metavar='N',
        help='in the first N of them each attention layer of a LaViT learns alone, from its teacher layer: cheaper '
        '(default: 0)',
    )
    parser.add_argument(
        '--fit-images',
        type=int,
        default=0,
        metavar='N',
        help='images that the transforms are fitted to, such as 32 (default: 0, they start near the identity)',
    )
    parser.add_argument('--lr', type=float, help="highest learning rate (default: the student config's)")
    add_train_arguments(parser)
    parser.set_defaults(auto_scale_lr=False)  # of tools/train.py, which this tool has not
    return parser.parse_args()


def main() -> None:
    """Distil."""
    args = parse_args()
    with one_line_errors(local_rank(args.launcher, args.local_rank)):
        if not osp.isdir(args.images):
            raise UserError(f'--images {args.images} does not exist; expected a folder of images')
        student = load_config(args.config, args.cfg_options)
        if args.work_dir is None and student.get('work_dir') is None:
            args.work_dir = osp.join('work_dirs', f'distill_{Path(args.config).stem}')
        cfg = distillation_config(
            student,
            load_config(args.teacher),
            args.checkpoint,
            args.images,
            iters=args.iters,
            layerwise_iters=args.layerwise_iters,
            fit_images=args.fit_images,
            lr=args.lr,
        )
        cfg = keep_options(cfg, args.cfg_options or {})
        run(merge_train_args(cfg, args), 'train', args.cfg_options, args.local_rank)


if __name__ == '__main__':
    main()
