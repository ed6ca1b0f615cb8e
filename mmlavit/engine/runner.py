"""The way from a merged config to a finished run."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any, Literal

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import distributed as dist

from mmlavit.utils.environment import SCOPES, check_environment

from .arguments import blame_options
from .checkpoints import require_checkpoints
from .data_paths import require_data
from .distributed import adapt_to_cpu, init_gloo, require_launcher


def run(
    cfg: Config,
    mode: Literal['train', 'test'],
    options: Mapping[str, Any] | None = None,
    local_rank: int = 0,
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
        UserError: If data, checkpoint, GPU or launcher are missing that the config asks for.
        EnvironmentProblem: If the config's toolbox cannot work as installed.
    """
    scope = cfg.get('default_scope')
    check_environment(scope if scope in SCOPES else None)
    splits = ['train', 'val'] if mode == 'train' else ['test']
    require_checkpoints(cfg)
    require_data(cfg, splits)
    launcher = cfg.get('launcher', 'none')
    require_launcher(launcher, local_rank)
    notes = []
    if get_device() == 'cpu':
        cfg, notes = adapt_to_cpu(cfg, training=mode == 'train')
        if launcher != 'none':
            init_gloo(launcher, cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout'))
    with blame_options(options):
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
    runner = build_runner(cfg)
    for note in notes:
        runner.logger.info(note)
    if mode == 'train':
        runner.train()
        return None
    return runner.test()


def build_runner(cfg: Config) -> Runner:
    """Build mmengine's runner, or the one that ``runner_type`` names.

    Args:
        cfg (Config): The config of the run.

    Returns:
        Runner: Ready to train or test.
    """
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
