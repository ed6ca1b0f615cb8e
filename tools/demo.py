"""Make the handwritten scenes, train a small model on them, test it, show what it sees, export it and report."""

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.device import get_device

from mmlavit.analysis.curves import Curve, Log, Panel, draw_panels
from mmlavit.datasets.handwritten import UNFINISHED
from mmlavit.errors import one_line_errors
from mmlavit.utils.config_files import load_config
from mmlavit.utils.data_paths import missing_data
from mmlavit.utils.local_files import expand_home
from mmlavit.visualization.annotated import read_examples
from mmlavit.visualization.drawing import make_sheet, write_picture
from mmlavit_serve import Predictor
from mmlavit_serve.predictor import find_images

TOOLS = Path(__file__).resolve().parent
DATA = Path('data/handwritten')
PICTURES, COLUMNS = 3, ('annotated', 'found')
# What a training or test prints while it runs; config and environment stay in the log file.
PROGRESS = re.compile(r' - (ERROR|CRITICAL) - |(Epoch|Iter)\((train|val|test)\)|Saving checkpoint|No GPU')


class Task(NamedTuple):
    """One of the three demos.

    Args:
        config (str): Its config, below ``configs/handwritten``.
        pictures (str): Which images are shown, below the data.
        enlarge (int): By how much they are shown larger.
        metrics (dict[str, tuple[str, float]]): For the log's key of each metric, what the summary calls it and its
            largest value.
        test_options (tuple[str, ...]): What its test needs besides.
    """

    config: str
    pictures: str
    enlarge: int
    metrics: dict[str, tuple[str, float]]
    test_options: tuple[str, ...] = ()


TASKS = {
    'detection': Task(
        'mask_rcnn_lavit_nano.py',
        'images/val',
        3,
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
        {'accuracy/top1': ('top-1 accuracy', 100)},
        ('default_hooks.visualization.interval=20',),  # of 1,000 images, some are enough to look at
    ),
    'segmentation': Task(
        'upernet_lavit_nano.py', 'images/val', 3, {'mIoU': ('mIoU', 100), 'aAcc': ('pixel accuracy', 100)}
    ),
}


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--task', choices=list(TASKS), default='detection')
    parser.add_argument('--work-dir', type=expand_home, help='default: work_dirs/demo_<task>')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='passed on to the training and the test'
    )
    return parser.parse_args()


def run_step(title: str, *command: object, quiet: bool = False) -> float:
    """Run a command and exit with its code if it fails.

    Args:
        title (str): What it does.
        *command (object): Script and arguments, for this interpreter.
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
        try:
            for line in process.stdout or ():
                if PROGRESS.search(line):
                    print(line, end='', flush=True)
                else:
                    hidden.append(line)
            process.wait()
        except KeyboardInterrupt:  # the command got it, too, and may have something to save
            process.communicate()
            print(f'interrupted: {title.lower()}', file=sys.stderr)
            sys.exit(128 + signal.SIGINT)
    if process.returncode:
        print(*hidden[-20:], sep='', end='', file=sys.stderr)
        code = process.returncode
        print(f'error: {title.lower()} failed (exit code {code}); its output is above', file=sys.stderr)
        sys.exit(code if code > 0 else 128 - code)
    return time.monotonic() - start


def draw_predictions(config: Path, checkpoint: Path, task: Task, folder: Path) -> Path:
    """Draw what is annotated in some images of the validation set and what the model finds, and a sheet of them.

    Args:
        config (Path): Config of the model.
        checkpoint (Path): Its weights.
        task (Task): What it does.
        folder (Path): Where ``predictions/`` and ``predictions.png`` go.

    Returns:
        Path: The sheet.
    """
    predictor = Predictor(config, checkpoint, device=get_device(), score_thr=0.5)
    drawn = []
    for index, example in enumerate(read_examples(load_config(str(config)), 'val', PICTURES)):
        result = predictor.predict(example.image)
        drawn += [found.draw(example.image, task.enlarge) for found in (example.annotation, result)]
        write_picture(folder / 'predictions' / f'{index}.png', make_sheet(drawn[-2:], 2, COLUMNS))
        print(f'{example.path}: {result.describe()}')
    write_picture(folder / 'predictions.png', make_sheet(drawn, 2, COLUMNS))
    return folder / 'predictions.png'


def try_exported(model: Path, folder: Path) -> str:
    """Run an exported model on the first image of a folder; describe what it finds."""
    picture = find_images(folder)[0]
    return f'{picture.name}: {Predictor(model, score_thr=0.5).predict(picture).describe()}'


def draw_curves(log: Log, metrics: dict[str, tuple[str, float]], out_file: Path) -> None:
    """Draw the losses of a training beside its validation metrics, as shares of their largest values."""
    losses = [key for key in log.keys(training=True) if 'loss' in key.rsplit('.', 1)[-1]]
    losses.sort(key=lambda key: key == 'loss')  # the total last, on top of its parts
    trained = [
        Curve(key, log.points(key), dict(linewidth=2.5) if key == 'loss' else dict(linewidth=1, alpha=0.7))
        for key in losses
    ]
    validated = [
        Curve(name, [(step, value / largest) for step, value in log.points(key)], dict(marker='o'))
        for key, (name, largest) in metrics.items()
    ]
    unit = log.unit(next(iter(metrics)))
    panels = [
        Panel('training loss', 'iteration', trained, log=True),
        Panel('validation', unit, validated, limits=(0, 1)),
    ]
    draw_panels(panels, out_file)


def is_made(cfg: Config) -> bool:
    """Tell whether the data is there, all of it."""
    return not missing_data(cfg, ['train', 'val', 'test']) and not (DATA / UNFINISHED).exists()


def newest(folder: Path, pattern: str) -> Path:
    """Find the file of the latest run below a work dir; mmengine names its folders by time."""
    return max(folder.glob(pattern))


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
        if not is_made(cfg):
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
        trained = work_dir / config.name  # with --cfg-options
        sheet = draw_predictions(trained, checkpoint, task, work_dir)
        draw_curves(Log.read(work_dir), task.metrics, work_dir / 'curves.png')

        model = work_dir / 'model.onnx'
        export = [TOOLS / 'deployment/export.py', trained, checkpoint, '--out', model]
        seconds['export'] = run_step('Exporting', *export)
        found = try_exported(model, DATA / task.pictures)

        report = work_dir / 'report' / 'report.html'
        analyze = [TOOLS / 'analysis_tools/report.py', work_dir, '--checkpoint', checkpoint]
        seconds['report'] = run_step('Reporting', *analyze)

    measured = json.loads(newest(test_dir, '2*/2*.json').read_text())
    # mmdet has no figures where nothing was found.
    metrics = {name: measured.get(key, 0) / largest for key, (name, largest) in task.metrics.items()}
    files = {
        'checkpoint': checkpoint,
        'log': newest(work_dir, '2*/2*.log'),
        'curves': work_dir / 'curves.png',
        'predictions': sheet,
        'all pictures': show_dir,
        'exported model': model,
        'report': report,
    }
    summary = {
        'task': args.task,
        'config': config,
        'metrics': metrics,
        'seconds': {name: round(value, 1) for name, value in seconds.items()},
        'device': get_device(),
        'threads': torch.get_num_threads(),
        'files': files,
        'onnxruntime': found,
    }
    (work_dir / 'summary.json').write_text(json.dumps(summary, indent=2, default=str) + '\n')
    scores = {name: f'{value:.3f}' for name, value in metrics.items()}
    times = {f'{name} took': timedelta(seconds=round(value)) for name, value in seconds.items()}
    print(f'\nLaViT demo: {args.task}')
    last = {'onnxruntime': found, 'summary': work_dir / 'summary.json'}
    for name, value in {**scores, **times, **files, **last}.items():
        print(f'  {name:<16}{value}')


if __name__ == '__main__':
    main()
