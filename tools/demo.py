"""Make the handwritten scenes, train a small model on them, test it and show what it sees."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.device import get_device

from mmlavit.analysis.report import format_seconds, format_summary, make_sheet, newest, plot_curves
from mmlavit.apis.inference import build_predictor, find_pictures, read_picture
from mmlavit.errors import one_line_errors
from mmlavit.utils.arguments import load_config
from mmlavit.utils.data_paths import missing_data

TOOLS = Path(__file__).resolve().parent
DATA = Path('data/handwritten')
PICTURES = 9
# What a training or test prints while it runs; config and environment stay in the log file.
PROGRESS = re.compile(r' - (ERROR|CRITICAL) - |(Epoch|Iter)\((train|val|test)\)|Saving checkpoint|No GPU')


class Task(NamedTuple):
    """One of the three demos.

    Args:
        config: Its config, below ``configs/handwritten``.
        pictures: Which pictures are shown, below the data.
        enlarge: By how much they are shown larger.
        unit: What its training counts.
        metrics: For the log's key of each metric, what the summary calls it and its largest value.
        test_options: What its test needs besides.
    """

    config: str
    pictures: str
    enlarge: int
    unit: str
    metrics: dict[str, tuple[str, float]]
    test_options: tuple[str, ...] = ()


TASKS = {
    'detection': Task(
        'mask_rcnn_lavit_nano.py',
        'images/val',
        3,
        'epoch',
        {
            'coco/bbox_mAP': ('box AP', 1),
            'coco/bbox_mAP_50': ('box AP50', 1),
            'coco/segm_mAP': ('mask AP', 1),
            'coco/segm_mAP_50': ('mask AP50', 1),
        },
    ),
    'classification': Task(
        'classify_lavit_nano.py',
        'classification/val',
        5,
        'epoch',
        {'accuracy/top1': ('top-1 accuracy', 100)},
        ('default_hooks.visualization.interval=20',),  # of 1,000 pictures, some are enough to look at
    ),
    'segmentation': Task(
        'upernet_lavit_nano.py',
        'images/val',
        3,
        'iteration',
        {'mIoU': ('mIoU', 100), 'aAcc': ('pixel accuracy', 100)},
    ),
}


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--task', choices=list(TASKS), default='detection')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/demo_<task>')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='passed on to the training and the test'
    )
    return parser.parse_args()


def run_step(title: str, *command: object, quiet: bool = False) -> float:
    """Run a command and exit with its code if it fails.

    Args:
        title (str): What it does.
        *command: Script and arguments, for this interpreter.
        quiet (bool): Show only the lines of its output that tell progress.

    Returns:
        float: Seconds it took.

    Raises:
        SystemExit: If it fails.
    """
    words = [sys.executable, *map(str, command)]
    print(f'\n== {title}\n$ {shlex.join(["python", *map(str, command)])}', flush=True)
    start = time.monotonic()
    hidden = []
    output = subprocess.PIPE if quiet else None
    with subprocess.Popen(words, stdout=output, text=True, errors='replace') as process:
        for line in process.stdout or ():
            if PROGRESS.search(line):
                print(line, end='', flush=True)
            else:
                hidden.append(line)
    if process.returncode:
        print(*hidden[-20:], sep='', end='', file=sys.stderr)
        code = process.returncode
        print(f'error: {title.lower()} failed (exit code {code}); its output is above', file=sys.stderr)
        sys.exit(code if code > 0 else 128 - code)
    return time.monotonic() - start


def draw_predictions(config: Path, checkpoint: Path, task: Task, folder: Path) -> Path:
    """Draw what the model finds in some pictures of the validation set, and a sheet of them.

    Args:
        config (Path): Config of the model.
        checkpoint (Path): Its weights.
        task (Task): What it does.
        folder (Path): Where ``predictions/`` and ``predictions.png`` go.

    Returns:
        Path: The sheet.
    """
    predictor = build_predictor(load_config(str(config)), str(checkpoint), get_device(), score_thr=0.5)
    pictures = find_pictures(str(DATA / task.pictures))
    # Evenly spread, since folders of classes come one after the other.
    pictures = pictures[:: max(1, len(pictures) // PICTURES)][:PICTURES]
    drawn = []
    for index, picture in enumerate(pictures):
        image = read_picture(picture)
        sample = predictor.predict(image)
        drawn.append(folder / 'predictions' / f'{index}.png')
        predictor.draw(image, sample, drawn[-1], task.enlarge)
        print(f'{picture}: {predictor.describe(sample)}')
    make_sheet(drawn, folder / 'predictions.png')
    return folder / 'predictions.png'


def main() -> None:
    """Run the demo."""
    args = parse_args()
    task = TASKS[args.task]
    config = Path(os.path.relpath(TOOLS.parent / 'configs/handwritten' / task.config))
    work_dir = args.work_dir or Path('work_dirs', f'demo_{args.task}')
    options = ['--cfg-options', *args.cfg_options] if args.cfg_options else []
    seconds = {}

    with one_line_errors():
        cfg = load_config(str(config))
        if missing_data(cfg, ['train', 'val', 'test']) or (DATA / 'UNFINISHED').exists():
            script = TOOLS / 'dataset_converters/handwritten.py'
            seconds['data'] = run_step('Making the data', script, '--root', DATA)

        train = [TOOLS / 'train.py', config, '--work-dir', work_dir, *options]
        seconds['training'] = run_step('Training', *train, quiet=True)
        checkpoint = Path(os.path.relpath((work_dir / 'last_checkpoint').read_text().strip()))

        test_dir, show_dir = work_dir / 'test', work_dir / 'test_pictures'
        test = [TOOLS / 'test.py', config, checkpoint, '--work-dir', test_dir, '--show-dir', show_dir]
        test_options = [*args.cfg_options, *task.test_options]
        test += ['--cfg-options', *test_options] if test_options else []
        seconds['test'] = run_step('Testing', *test, quiet=True)

        print('\n== Drawing', flush=True)
        sheet = draw_predictions(config, checkpoint, task, work_dir)
    curves = work_dir / 'curves.png'
    plot_curves(newest(work_dir, '2*/vis_data/scalars.json'), task.metrics, curves, task.unit)

    measured = json.loads(newest(test_dir, '2*/2*.json').read_text())
    metrics = {name: measured[key] / largest for key, (name, largest) in task.metrics.items()}
    files = {
        'checkpoint': checkpoint,
        'log': newest(work_dir, '2*/2*.log'),
        'curves': curves,
        'predictions': sheet,
        'all pictures': show_dir,
    }
    summary = {
        'task': args.task,
        'config': config,
        'metrics': metrics,
        'seconds': {name: round(value, 1) for name, value in seconds.items()},
        'device': get_device(),
        'threads': torch.get_num_threads(),
        'files': files,
    }
    (work_dir / 'summary.json').write_text(json.dumps(summary, indent=2, default=str) + '\n')
    times = {f'{name} took': format_seconds(value) for name, value in seconds.items()}
    rows = {**metrics, **times, **files, 'summary': work_dir / 'summary.json'}
    print('\n' + format_summary(f'LaViT demo: {args.task}', rows))


if __name__ == '__main__':
    main()
