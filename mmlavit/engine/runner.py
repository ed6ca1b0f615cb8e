"""The way from a merged config to a finished run."""

from __future__ import annotations

import gc
import os
import shutil
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner, Runner
from torch import distributed as dist

from mmlavit.environment import SCOPES
from mmlavit.models.consistency import require_channels
from mmlavit.utils.arguments import blame_options
from mmlavit.utils.checkpoint import require_checkpoints
from mmlavit.utils.data_paths import require_data
from mmlavit.utils.local_files import remove_partial_files
from mmlavit.utils.toolbox import load_toolbox

from .data import explain_sizes, watch_data
from .distributed import adapt_to_cpu, init_gloo, require_launcher, require_strategy
from .hooks.checkpoint_fit_hook import CheckpointFitHook
from .hooks.total_batch_hook import TotalBatchHook
from .resume import find_whole_checkpoint


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
        UserError: If data, checkpoint, GPU, launcher or strategy are missing that the config asks for.
        EnvironmentProblem: If the config's toolbox cannot work as installed.
    """
    scope = cfg.get('default_scope')
    if scope in SCOPES:
        load_toolbox(scope)
    if mode == 'train':
        remove_partial_files(cfg.work_dir)
        if cfg.get('resume') and not cfg.get('load_from'):
            cfg.load_from = find_whole_checkpoint(cfg.work_dir)
    splits = ['train', 'val'] if mode == 'train' else ['test']
    require_checkpoints(cfg)
    require_channels(cfg.model)
    require_data(cfg, splits)
    launcher = cfg.get('launcher', 'none')
    require_launcher(launcher, local_rank)
    require_strategy(cfg)
    if cfg.get('randomness', {}).get('deterministic'):
        # Without it, cuBLAS refuses to be deterministic.
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    notes = []
    if get_device() == 'cpu':
        cfg, notes = adapt_to_cpu(cfg, training=mode == 'train')
        if launcher != 'none':
            init_gloo(launcher, cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout'))
    with blame_options(options), explain_sizes():
        metrics = _run(cfg, mode, notes)
    # Not after an error: there the other processes may still wait for this one.
    if dist.is_initialized():
        dist.destroy_process_group()
        # The runner is a reference cycle around the process group, whose threads end with it. One
        # that is alive when the interpreter shuts down can abort the process.
        gc.collect()
    return metrics


def _run(cfg: Config, mode: str, notes: list[str]) -> dict | None:
    """Build the runner, log ``notes`` and run; return the metrics of a test."""
    with _without_complaints_of_a_compiler():
        runner = build_runner(cfg)
    for note in notes:
        runner.logger.info(note)
    watch_data(runner, cfg)
    if cfg.get('load_from'):
        runner.register_hook(CheckpointFitHook(cfg.load_from, whole=mode == 'test' or bool(cfg.get('resume'))))
    if mode == 'train':
        runner.register_hook(TotalBatchHook())
        runner.train()
        return None
    return runner.test()


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


class _FlexibleRunner(FlexibleRunner):
    """mmengine's runner with strategies, except that a checkpoint's epoch is what ``CheckpointHook`` says it is.

    mmengine's own takes every checkpoint for one made at the end of a training epoch. With ``save_best`` it is written
    once more after the validation, when an epoch too many would be counted and a resumed training would leave one out.
    """

    def save_checkpoint(self, out_dir: str, filename: str, *args, meta: dict, by_epoch: bool = True, **kwargs) -> None:
        """Save a checkpoint; arguments as for ``Runner.save_checkpoint``."""
        loop = self.train_loop
        now = loop._epoch, loop._iter
        # One of the two is about to be counted up.
        loop._epoch, loop._iter = meta['epoch'] - by_epoch, meta['iter'] - (not by_epoch)
        try:
            super().save_checkpoint(out_dir, filename, *args, meta=meta, by_epoch=by_epoch, **kwargs)
        finally:
            loop._epoch, loop._iter = now


def build_runner(cfg: Config) -> Runner | FlexibleRunner:
    """Build mmengine's runner, or the one that ``runner_type`` names.

    Args:
        cfg (Config): The config of the run.

    Returns:
        Runner or FlexibleRunner: Ready to train or test.
    """
    if cfg.get('runner_type') == 'FlexibleRunner':
        return _FlexibleRunner.from_cfg(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
