#!/usr/bin/env python
"""Make one report of a training: curves, attention, diagonality, feature pyramid and cost, as HTML with pictures."""

import argparse
import shlex
import sys
import warnings

from mmengine.logging import MMLogger

from mmlavit.analysis.report import Source, write_report
from mmlavit.analysis.runs import open_run
from mmlavit.analysis.trained import choose_pictures
from mmlavit.errors import one_line_errors
from mmlavit.utils.arguments import add_picture_arguments
from mmlavit.utils.local_files import expand_home, require_folder


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=f'{__doc__} What is not there (validation, less attention, ...) is left out with a sentence.',
        epilog='What the pictures show: docs/pictures.md.',
    )
    parser.add_argument(
        'work_dir', type=expand_home, help='work dir of a training, with its config, checkpoint and log'
    )
    parser.add_argument(
        '--checkpoint', type=expand_home, metavar='FILE', help='weights (default: the last of the training)'
    )
    parser.add_argument(
        '--config',
        type=expand_home,
        metavar='FILE',
        help='config of the model and its test data (default: the newest in the work dir; a distillation has no '
        'test data, so give that of the student)',
    )
    parser.add_argument(
        '--compare',
        type=expand_home,
        nargs='+',
        default=[],
        metavar='WORK_DIR',
        help='draw these trainings, too: that of the vanilla twin, or that without the diagonality loss',
    )
    add_picture_arguments(parser, 2)
    parser.add_argument('--out-dir', type=expand_home, help='default: report, in the work dir')
    return parser.parse_args()


def main() -> None:
    """Open the work dirs and write the report."""
    args = parse_args()
    MMLogger.get_current_instance().setLevel('ERROR')
    warnings.simplefilter('ignore')  # what is said while models are built is about their training
    with one_line_errors():
        out_dir = args.out_dir or args.work_dir / 'report'
        run = open_run(args.work_dir, args.checkpoint, args.device, args.config)
        others = [open_run(folder, device=args.device) for folder in args.compare]
        paths = choose_pictures(run.trained.cfg, args.images, args.num_images)
        require_folder(out_dir, '--out-dir')
        source = Source(run, others, paths, out_dir)
        report = write_report(source, shlex.join(['python', *sys.argv]), lambda title: print(title, flush=True))
    print(f'report -> {report}')


if __name__ == '__main__':
    main()
