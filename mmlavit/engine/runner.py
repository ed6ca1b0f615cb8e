"""The way from a merged config to a finished run."""

from __future__ import annotations

import gc
import os
import os.path as osp
import shutil
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import get_rank, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS, RUNNERS
from mmengine.runner import BaseLoop, FlexibleRunner, Runner
from torch import distributed as dist
from torch import nn
from torch.utils.data import IterableDataset

from mmlavit.environment import SCOPES
from mmlavit.errors import STOPPED_CODE, ConfigError
from mmlavit.models import LaViT
from mmlavit.models.consistency import require_channels
from mmlavit.models.plain_vit import WithLessAttention
from mmlavit.utils.blame import blame_config
from mmlavit.utils.checkpoint import require_checkpoints
from mmlavit.utils.config_types import type_name
from mmlavit.utils.data_paths import require_data
from mmlavit.utils.local_files import remove_partial_files, require_folder
from mmlavit.utils.toolbox import load_toolbox

from .data import explain_sizes, watch_data
from .distributed import adapt_to_cpu, init_gloo, require_launcher, require_strategy
from .hooks.checkpoint_fit_hook import CheckpointFitHook, CheckpointFormatHook
from .hooks.collect_hook import CollectHook
from .hooks.position_hook import PositionHook
from .hooks.rates_hook import RatesHook
from .hooks.stop_hook import StopHook, TrainingStopped
from .hooks.total_batch_hook import TotalBatchHook
from .hooks.warm_up_hook import WarmUpHook
from .loader import ResumableLoader
from .loops import ENDLESS_SAMPLERS, NO_BATCH, NO_END, EpochLoop, find_loop
from .plain_model import unwrap
from .resume import find_whole_checkpoint, has_begun


def run(
    cfg: Config, mode: Literal['train', 'test'], options: Mapping[str, Any] | None = None, local_rank: int = 0
) -> dict | None:
    """Check a config against this machine, then train or test with it.

    Args:
        cfg (Config): The merged config.
        mode (str): 'train' or 'test'.
        options (Mapping, optional): The ``--cfg-options``, to blame them for arguments nobody takes.
        local_rank (int): Value of ``--local_rank``.

    Returns:
        dict, optional: The metrics of a test.

    Raises:
        UserError: If the work dir cannot be written to, or if data, checkpoint, GPU, launcher or strategy are missing
            that the config asks for.
        EnvironmentProblem: If the config's toolbox cannot work as installed.
        SystemExit: With ``STOPPED_CODE`` (:mod:`mmlavit.errors`), if a signal has stopped a training.
    """
    scope = cfg.get('default_scope')
    if scope in SCOPES:
        load_toolbox(scope)
    _name_runner(cfg)
    notes = _find_start(cfg) if mode == 'train' and cfg.get('resume') else []
    splits = ['train', 'val'] if mode == 'train' else ['test']
    require_checkpoints(cfg)
    require_channels(cfg.model)
    require_data(cfg, splits)
    launcher = cfg.get('launcher', 'none')
    require_launcher(launcher, local_rank)
    require_strategy(cfg)
    require_folder(cfg.work_dir, '--work-dir')  # last: it makes the folder, and a mistake leaves none
    if mode == 'train':
        remove_partial_files(cfg.work_dir)
        _use_whole_checkpoints(cfg)
    if cfg.get('randomness', {}).get('deterministic'):
        # Without it, cuBLAS refuses to be deterministic.
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    if get_device() == 'cpu':
        cfg, changes = adapt_to_cpu(cfg, training=mode == 'train')
        notes += changes
        if launcher != 'none':
            init_gloo(launcher, cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout'))
    metrics, stopped = None, False
    try:
        with blame_config(cfg, options), explain_sizes():
            metrics = _run(cfg, mode, notes)
    except TrainingStopped:
        stopped = True
    # Not after an error: there the other processes may still wait for this one. Where one is stopped, all are.
    if dist.is_initialized():
        dist.destroy_process_group()
        # The runner is a reference cycle around the process group, whose threads end with it. One
        # that is alive when the interpreter shuts down can abort the process.
        gc.collect()
    if stopped:
        raise SystemExit(STOPPED_CODE)
    return metrics


def _find_start(cfg: Config) -> list[str]:
    """Set what a training that is to be resumed starts from, and say what of it a user should know."""
    if cfg.resume == 'auto':  # --resume without a checkpoint
        cfg.resume = has_begun(cfg.work_dir)
        if not cfg.resume:
            source = f' from load_from={cfg.load_from}' if cfg.get('load_from') else ''
            return [f'There is no checkpoint in {cfg.work_dir} to resume from: the training begins{source}.']
        cfg.load_from = None
    if not cfg.get('load_from'):
        cfg.load_from = find_whole_checkpoint(cfg.work_dir)
    return []


def _use_whole_checkpoints(cfg: Config) -> None:
    """Have configs that name mmengine's hook by its class or path use ours, which has its bare name."""
    default = (cfg.get('default_hooks') or {}).values()
    for hook in [*default, *(cfg.get('custom_hooks') or [])]:
        if isinstance(hook, Mapping) and type_name(hook) == 'CheckpointHook':
            kind = HOOKS.get(hook['type']) if isinstance(hook['type'], str) else hook['type']
            if kind is CheckpointHook:
                hook['type'] = 'CheckpointHook'


def _run(cfg: Config, mode: str, notes: list[str]) -> dict | None:
    """Build the runner, log ``notes`` and run; return the metrics of a test."""
    with _without_complaints_of_a_compiler():
        runner = build_runner(cfg, mode)
    for note in notes:
        runner.logger.info(note)
    watch_data(runner, cfg)
    if mode == 'train':
        if cfg.get('activation_checkpointing'):  # of mmengine's Runner alone, whose model is built by now
            _require_own_checkpointing(cfg, runner.model)
        if not any(type_name(hook) == 'CheckNumbersHook' for hook in cfg.get('custom_hooks') or []):
            runner.logger.info(
                'The config has no CheckNumbersHook: a loss that is NaN does not end the training. '
                "custom_hooks = [dict(type='CheckNumbersHook'), ...] does"
            )
    if cfg.get('load_from'):
        goes_on = mode == 'test' or bool(cfg.get('resume'))
        runner.register_hook(CheckpointFormatHook(cfg.load_from, begins=not goes_on))
        runner.register_hook(CheckpointFitHook(cfg.load_from, whole=goes_on))
    runner.register_hook(CollectHook(mode))
    if mode == 'test':
        return runner.test()
    stop = StopHook()
    for hook in (TotalBatchHook(), WarmUpHook(), RatesHook(), PositionHook(), stop):
        runner.register_hook(hook)
    try:
        runner.train()
    finally:
        stop.close()
    return None


def _require_own_checkpointing(cfg: Config, model: nn.Module) -> None:
    """Refuse mmengine's gradient checkpointing of layers that hand on scores, whose gradients it loses."""
    names = cfg.activation_checkpointing
    for place, module in unwrap(model).named_modules():
        for name in [names] if isinstance(names, str) else names:
            if isinstance(module, (LaViT, WithLessAttention)) and (
                f'{place}.'.startswith(f'{name}.') or f'{name}.'.startswith(f'{place}.')
            ):
                instead = f'set model.{place}.with_cp=True' if isinstance(module, LaViT) else 'leave it out'
                raise ConfigError(
                    f'activation_checkpointing of {name} loses gradients of the scores that the layers of '
                    f'{type(module).__name__} hand on; {instead} instead'
                )


@contextmanager
def _without_complaints_of_a_compiler() -> Iterator[None]:
    """Keep a shell from saying that Python's compiler is missing, when mmengine asks for its version."""
    variables = sysconfig.get_config_vars()
    compiler = variables.get('CC')
    if compiler and shutil.which(compiler.split()[0]) is None:
        variables['CC'] = ':'  # the shell's command that does nothing
    try:
        yield
    finally:
        variables['CC'] = compiler


class _Resumable:
    """Has mmengine's runners train with our loops, which can be resumed anywhere; exactly, with ``exact_resume``."""

    def build_train_loop(self, loop: BaseLoop | Mapping[str, Any]) -> BaseLoop:
        """Build the loop that a config asks for; the argument is that of ``Runner.build_train_loop``."""
        exact = self.cfg.get('exact_resume', False)
        apart = self._randomness_cfg.get('diff_rank_seed', False)
        if exact and (apart or self._randomness_cfg.get('seed') is None):
            raise ConfigError('exact_resume needs one seed for all processes, such as randomness=dict(seed=0)')
        kind = find_loop(loop) if isinstance(loop, Mapping) else None
        loader = self.build_dataloader(self._train_dataloader, seed=self.seed, diff_rank_seed=apart)
        if kind is None or isinstance(loader.dataset, IterableDataset):
            if exact:
                raise ConfigError('exact_resume needs a train loop of mmengine, and a dataset with numbered samples')
            config, self._train_dataloader = self._train_dataloader, loader
            try:
                return super().build_train_loop(loop)
            finally:
                self._train_dataloader = config  # which says the batch size, for the scaling of the learning rate
        if kind is EpochLoop and not len(loader):
            raise ConfigError(NO_BATCH)
        sampler = type(getattr(loader.batch_sampler, 'sampler', None)).__name__
        if kind is EpochLoop and sampler in ENDLESS_SAMPLERS:
            raise ConfigError(NO_END.format(sampler))
        loader = ResumableLoader(loader, self.seed if exact else None, get_rank())
        # mmengine puts _scope_ where a config inherits from one of another toolbox (mmdet::...).
        arguments = {key: value for key, value in loop.items() if key not in ('type', 'by_epoch', '_scope_')}
        return kind(runner=self, dataloader=loader, **arguments)


class _Runner(_Resumable, Runner):
    """mmengine's runner, with our loops."""


class _TestRunner(Runner):
    """mmengine's runner; the config of a test goes to its logs, so that the work dir keeps that of its training."""

    def dump_config(self) -> None:
        """Write the config."""
        if is_main_process():
            self.cfg.dump(osp.join(self.log_dir, osp.basename(self.cfg.filename or 'config.py')))


def _name_runner(cfg: Config) -> None:
    """Call mmengine's runners by their plain names, also where a config has the class or its scope."""
    kind = cfg.get('runner_type')
    found = RUNNERS.get(kind) if isinstance(kind, str) else kind
    if found in (Runner, FlexibleRunner):
        cfg.runner_type = found.__name__


class _FlexibleRunner(_Resumable, FlexibleRunner):
    """mmengine's runner with strategies, with our loops; a checkpoint's epoch is what ``CheckpointHook`` says it is.

    mmengine's own takes every checkpoint for one made at the end of a training epoch. With ``save_best`` it is written
    once more after the validation, when an epoch too many would be counted and a resumed training would leave one out.
    """

    def save_checkpoint(
        self, out_dir: str, filename: str, *args, meta: dict | None = None, by_epoch: bool = True, **kwargs
    ) -> None:
        """Save a checkpoint; arguments as for ``Runner.save_checkpoint``."""
        if meta is None:  # not from CheckpointHook
            super().save_checkpoint(out_dir, filename, *args, by_epoch=by_epoch, **kwargs)
            return
        loop = self.train_loop
        now = loop._epoch, loop._iter
        # One of the two is about to be counted up.
        loop._epoch, loop._iter = meta['epoch'] - by_epoch, meta['iter'] - (not by_epoch)
        try:
            super().save_checkpoint(out_dir, filename, *args, meta=meta, by_epoch=by_epoch, **kwargs)
        finally:
            loop._epoch, loop._iter = now


def build_runner(cfg: Config, mode: Literal['train', 'test']) -> Runner | FlexibleRunner:
    """Build mmengine's runner with our loops, or the one that ``runner_type`` names; for a test, always ``Runner``.

    Args:
        cfg (Config): The config of the run.
        mode (str): 'train' or 'test'.

    Returns:
        Runner or FlexibleRunner: Ready to train or test.

    Raises:
        ConfigError: If ``exact_resume`` is on and the config has a runner of its own.
    """
    if mode == 'test':
        return _TestRunner.from_cfg(cfg)
    ours = {'Runner': _Runner, 'FlexibleRunner': _FlexibleRunner}.get(cfg.get('runner_type', 'Runner'))
    if ours is not None:
        return ours.from_cfg(cfg)
    if cfg.get('exact_resume'):
        raise ConfigError(f'exact_resume does not work with runner_type={cfg.runner_type!r}; expected Runner')
    if RUNNERS.get(cfg.runner_type) is None:
        raise ConfigError(f'no runner_type {cfg.runner_type!r} is registered; expected Runner or FlexibleRunner')
    return RUNNERS.build(cfg)
