"""Command line options of ``tools/train.py`` and ``tools/test.py``, and their merge into a config."""

from __future__ import annotations

import argparse
import copy
import os
import os.path as osp
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from mmengine.config import Config, ConfigDict, DictAction

from mmlavit.errors import UserError

from .checkpoint import trust_checkpoints
from .config_types import type_name
from .data_paths import find_leaf_configs
from .local_files import expand_home
from .toolbox import find_scope

# What the toolboxes' own scripts use when the config is silent about drawing.
_VISUALIZATION = {
    'mmdet': ('DetVisualizationHook', 'DetLocalVisualizer'),
    'mmseg': ('SegVisualizationHook', 'SegLocalVisualizer'),
    'mmpretrain': ('VisualizationHook', 'UniversalVisualizer'),
}

_FIGURES = ('.png', '.pdf', '.svg', '.jpg')


class OptionsAction(DictAction):
    """mmengine's ``KEY=VALUE`` parser, with usage errors instead of stack traces."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Collect ``KEY=VALUE`` words into a dict.

        Raises:
            argparse.ArgumentError: If a word is not of that form.
        """
        try:
            super().__call__(parser, namespace, values, option_string)
        except (AssertionError, ValueError) as error:
            message = f'expected KEY=VALUE words such as model.backbone.arch=tiny, got {values}'
            raise argparse.ArgumentError(self, message) from error


def positive(text: str) -> int:
    """Read a number above 0 from a command line."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def figure(text: str) -> Path:
    """Read from a command line where a figure goes."""
    path = expand_home(text)
    if path.suffix.lower() not in _FIGURES:
        endings = f'{", ".join(_FIGURES[:-1])} or {_FIGURES[-1]}'
        raise argparse.ArgumentTypeError(f'{text}: expected a file ending in {endings}')
    return path


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing share.

    Args:
        parser (argparse.ArgumentParser): Parser to extend. The positional arguments are its own.
    """
    parser.add_argument('--work-dir', help='where logs and results go; default: work_dirs/<name of the config>')
    add_options_argument(
        parser,
        'change the config, e.g. train_dataloader.batch_size=4 model.backbone.arch=tiny; '
        'lists as key="[a,b]", elements of lists by number as in param_scheduler.0.end=100',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='who started the processes; set by the dist_*.sh and slurm_*.sh scripts',
    )
    add_trust_argument(parser)
    # Older launchers pass the rank as an option instead of the environment variable LOCAL_RANK.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that all kinds of training share, and those of :func:`add_common_arguments`.

    Args:
        parser (argparse.ArgumentParser): Parser to extend. The positional arguments are its own.
    """
    parser.add_argument(
        '--amp', action='store_true', help='train in automatic mixed precision (bfloat16 without a GPU)'
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from this checkpoint, or without one from the latest in the work dir',
    )
    add_common_arguments(parser)


def add_picture_arguments(parser: argparse.ArgumentParser, number: int) -> None:
    """Add the options of tools that look at a trained model with some images.

    Args:
        parser (argparse.ArgumentParser): Parser to extend.
        number (int): How many images are taken by default.
    """
    parser.add_argument(
        '--images', type=expand_home, help="an image or a folder of them (default: those of the config's test)"
    )
    parser.add_argument(
        '--num-images', type=positive, default=number, metavar='N', help='at most so many (default: %(default)s)'
    )
    parser.add_argument('--device', default='cpu', help='default: %(default)s')
    add_trust_argument(parser)


def add_options_argument(parser: argparse.ArgumentParser, help: str) -> None:
    """Add ``--cfg-options``.

    Args:
        parser (argparse.ArgumentParser): Parser of a tool that reads a config.
        help (str): What it says about the option.
    """
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction, metavar='KEY=VALUE', help=help)


class _TrustAction(argparse.Action):
    """Calls :func:`~mmlavit.utils.checkpoint.trust_checkpoints`."""

    def __call__(self, parser, namespace, values, option_string=None):
        try:
            trust_checkpoints()
        except UserError as error:
            raise argparse.ArgumentError(self, str(error)) from error


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option that has checkpoints trusted, from the moment it is parsed.

    Args:
        parser (argparse.ArgumentParser): Parser of a tool that reads checkpoints.
    """
    parser.add_argument(
        '--trust-checkpoint',
        action=_TrustAction,
        nargs=0,
        default=argparse.SUPPRESS,
        help='also load checkpoints that hold more than weights and plain values. Loading such a file can run any code '
        'as you: use it only for files whose maker you trust',
    )


def merge_train_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Merge the options of ``tools/train.py`` into a copy of a config.

    Args:
        cfg (Config): The config, ``--cfg-options`` applied.
        args (argparse.Namespace): With ``config, work_dir, amp, resume, auto_scale_lr, launcher``.

    Returns:
        Config: The config of the run.

    Raises:
        UserError: If the config lacks what an option needs.
    """
    cfg = _merge_common_args(cfg, args, 'train')
    if args.amp:
        wrapper = type_name(cfg.optim_wrapper, 'OptimWrapper')
        if wrapper not in ('OptimWrapper', 'AmpOptimWrapper'):
            raise UserError(
                f'--amp replaces an OptimWrapper, but optim_wrapper.type is {wrapper}; '
                'set up mixed precision in the config instead'
            )
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise UserError(
                '--auto-scale-lr needs the batch size that the learning rate was made for; '
                'add auto_scale_lr=dict(base_batch_size=...) to the config'
            )
        cfg.auto_scale_lr.enable = True
    if args.resume is not None:
        # 'auto' keeps load_from, for a training that has not begun; `mmlavit.engine.run` finds out.
        cfg.resume, cfg.load_from = ('auto', cfg.get('load_from')) if args.resume == 'auto' else (True, args.resume)
    return cfg


def merge_test_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Merge the options of ``tools/test.py`` into a copy of a config.

    Args:
        cfg (Config): The config, ``--cfg-options`` applied.
        args (argparse.Namespace): With ``config, checkpoint, runtime, work_dir, out, show, show_dir,
            wait_time, tta, launcher``.

    Returns:
        Config: The config of the run.

    Raises:
        UserError: If the config lacks what an option needs.
    """
    cfg = _merge_common_args(cfg, args, 'test')
    cfg.load_from = args.checkpoint
    cfg.resume = False
    if args.checkpoint.endswith('.onnx'):
        _use_exported_model(cfg, args)
    elif args.runtime:
        raise UserError(f'--runtime {args.runtime} runs an exported model (.onnx), but {args.checkpoint} is none')
    # A strategy shards what training needs; a test runs on whole models.
    for key in ('runner_type', 'strategy'):
        cfg.pop(key, None)
    if args.show or args.show_dir:
        _draw_predictions(cfg, args)
    if args.tta:
        _use_test_time_augmentation(cfg)
    if args.out:
        _keep_predictions(cfg, args.out)
    return cfg


def _merge_common_args(cfg: Config, args: argparse.Namespace, mode: str) -> Config:
    """Copy ``cfg`` and set what ``mode`` ('train' or 'test') has in common with the other."""
    if cfg.get(f'{mode}_dataloader') is None:
        raise UserError(f'config {args.config} has no {mode}_dataloader, so it cannot {mode}')
    if cfg.get('model') is None:
        raise UserError(f'config {args.config} has no model, so it cannot {mode}; is it a part of others (_base_)?')
    if mode == 'train' and cfg.get('optim_wrapper') is None:
        raise UserError(f'config {args.config} has no optim_wrapper, so it cannot train')
    for split in ('val', 'test'):
        parts = [f'{split}_dataloader', f'{split}_cfg', f'{split}_evaluator']
        missing = [name for name in parts if cfg.get(name) is None]
        if 0 < len(missing) < len(parts):
            there = ' and '.join(name for name in parts if name not in missing)
            raise UserError(
                f'config {args.config} has {there}, but no {" and no ".join(missing)}; set all three, or none of them'
            )
    cfg = copy.deepcopy(cfg)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = osp.expanduser(args.work_dir)
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('work_dirs', Path(args.config).stem)
    else:
        cfg.work_dir = osp.expanduser(cfg.work_dir)
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if loader is None:
            continue
        if not isinstance(loader, Mapping):
            raise UserError(f'{name} is a {type(loader).__name__}, expected a dict; several datasets: ConcatDataset')
        if cfg.get('default_scope') == 'mmpretrain':
            # Its configs leave these to the script.
            loader.setdefault('collate_fn', dict(type='default_collate'))
            loader.setdefault('pin_memory', True)
            if name != 'test_dataloader':
                loader.setdefault('persistent_workers', True)
        if loader.get('num_workers', 0) == 0:
            # PyTorch refuses both without workers; `num_workers=0` alone should do for debugging.
            loader.persistent_workers = False
            loader.pop('prefetch_factor', None)
    return cfg


def _draw_predictions(cfg: Config, args: argparse.Namespace) -> None:
    """Switch on the visualization hook of the config's toolbox."""
    scope = find_scope(cfg)
    hook_type, visualizer_type = _VISUALIZATION[scope]
    cfg.setdefault('default_hooks', ConfigDict())
    if cfg.default_hooks.get('visualization') is None:
        cfg.default_hooks.visualization = ConfigDict(type=hook_type)
    hook = cfg.default_hooks.visualization
    if cfg.get('visualizer') is None:
        cfg.visualizer = ConfigDict(type=visualizer_type)
    if scope == 'mmpretrain':
        hook.enable = True
        hook.setdefault('interval', 1)
    else:
        hook.draw = True
    if args.show:
        require_screen('--show-dir')
        hook.update(show=True, wait_time=args.wait_time)
    if not args.show_dir:
        return
    # mmdet joins a relative directory to itself once per batch.
    directory = osp.abspath(osp.expanduser(args.show_dir))
    if scope == 'mmseg':
        cfg.visualizer.update(save_dir=directory, vis_backends=[dict(type='LocalVisBackend')])
    else:
        hook['test_out_dir' if scope == 'mmdet' else 'out_dir'] = directory


def require_screen(instead: str) -> None:
    """Make sure that ``--show`` can open a window.

    Args:
        instead (str): The option that writes images to a folder.

    Raises:
        UserError: If there is no screen, when the toolboxes would wait at each image for a window that nobody sees.
    """
    if sys.platform == 'linux' and not (os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')):
        raise UserError(f'--show needs a screen, but DISPLAY is not set; leave it out to write images to {instead}')


def _use_exported_model(cfg: Config, args: argparse.Namespace) -> None:
    """Put a model that tools/deployment/export.py wrote into the place of the config's."""
    if args.tta:
        raise UserError(f'--tta changes the model of the config, but {args.checkpoint} is one of its own')
    for key in args.cfg_options or {}:
        if re.match(r'(model|data_preprocessor)(\.|$)', key) or re.search(r'pipeline(\.|$)', key):
            raise UserError(
                f'--cfg-options {key}=... changes the model or its images, but {args.checkpoint} has both inside; '
                'export it anew with this option'
            )
    cfg.load_from = None
    # What would change the model, or be a part of it.
    cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks') or [] if type_name(hook) != 'EMAHook']
    cfg.pop('data_preprocessor', None)
    model = 'mmlavit.deployment.evaluation.ExportedModel'
    scope = cfg.get('default_scope')
    cfg.model = ConfigDict(type=model, file=args.checkpoint, runtime=args.runtime, scope=scope)


def _use_test_time_augmentation(cfg: Config) -> None:
    """Wrap the model into the config's ``tta_model`` and feed it the ``tta_pipeline``."""
    for key in ('tta_model', 'tta_pipeline'):
        if cfg.get(key) is None:
            raise UserError(f'--tta needs tta_model and tta_pipeline, but the config has no {key}')
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    for dataset in find_leaf_configs(cfg.test_dataloader.dataset):
        dataset.pipeline = cfg.tta_pipeline


def _keep_predictions(cfg: Config, out: str) -> None:
    """Write predictions to ``out``: a pickle file for any task, a folder of maps for segmentation."""
    scope = cfg.get('default_scope')
    if out.endswith(('.pkl', '.pickle')):
        if isinstance(cfg.test_evaluator, Mapping) and 'dataset_prefixes' in cfg.test_evaluator:
            # It runs as many metrics as it has datasets, and silently none beyond.
            raise UserError(
                f'--out {out} does not work with {type_name(cfg.test_evaluator)}; test one dataset at a time'
            )
        dump = 'DumpDetResults' if scope == 'mmdet' else 'DumpResults'
        _evaluators(cfg).append(ConfigDict(type=dump, out_file_path=out))
    elif scope == 'mmseg':
        for evaluator in _evaluators(cfg):
            evaluator.output_dir = out
    else:
        raise UserError(
            f'--out {out}: expected a file ending in .pkl or .pickle '
            '(only segmentation also writes a folder of label maps)'
        )


def _evaluators(cfg: Config) -> list:
    """Give the list of test metrics of ``cfg``, which may have been a single one."""
    holder, key = cfg, 'test_evaluator'
    if isinstance(cfg.test_evaluator, Mapping) and 'metrics' in cfg.test_evaluator:
        holder, key = cfg.test_evaluator, 'metrics'
    if not isinstance(holder[key], list):
        holder[key] = [holder[key]]
    return holder[key]
