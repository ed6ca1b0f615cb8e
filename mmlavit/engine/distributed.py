"""Several processes without a GPU, and single ones: what mmengine takes for granted and a CPU lacks."""

from __future__ import annotations

import copy
import datetime
import logging
import os
import subprocess
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from torch import distributed as dist

from mmlavit.errors import UserError
from mmlavit.utils.config_types import type_name

# What launchers call torch's variables of the environment: rank, number of processes, rank on this machine.
_TORCH = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')
_VARIABLES = {
    'pytorch': _TORCH,
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}
_LAUNCHED_BY = {
    'pytorch': 'tools/dist_train.sh or tools/dist_test.sh (torchrun)',
    'slurm': 'tools/slurm_train.sh or tools/slurm_test.sh (srun)',
    'mpi': 'mpirun',
}
_SYNC_BN = {'SyncBN', 'MMSyncBN', 'SyncBatchNorm'}
# What mmengine's Runner reads and its FlexibleRunner ignores.
_RUNNER_ONLY = (
    'activation_checkpointing',
    'compile',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'sync_bn',
)
# What to do about gradient clipping where parameters are sharded.
_CLIPPING = {
    'DeepSpeedStrategy': 'write optim_wrapper without it (_delete_=True) and set strategy.gradient_clipping',
    'FSDPStrategy': 'each process would clip by the norm of its own shard; set it to None',
}


def local_rank(launcher: str, default: int = 0) -> int:
    """Give the number of this process on its machine.

    Args:
        launcher (str): 'none', 'pytorch', 'slurm' or 'mpi'.
        default (int): Used where the environment does not say.

    Returns:
        int: 0 for the first process.
    """
    return int(os.environ.get(_VARIABLES[launcher][-1], default)) if launcher in _VARIABLES else default


def require_launcher(launcher: str, rank: int = 0) -> None:
    """Make sure that the launcher named on the command line did start this process.

    Args:
        launcher (str): 'none', 'pytorch', 'slurm' or 'mpi'.
        rank (int): Value of ``--local_rank``, for launchers that pass the option and no variable.

    Raises:
        UserError: If its variables are not set, if torchrun started several processes and none is named, or if it
            started more processes than there are GPUs.
    """
    if launcher == 'none':
        # Not of the first task, which may be the shell of an interactive step. The others may be meant so.
        if int(os.environ.get('SLURM_STEP_NUM_TASKS', 1)) > 1 and int(os.environ.get('SLURM_PROCID', 0)) > 0:
            print_log(
                'srun has started several processes, and each runs by itself. For one run of all of them, add '
                '--launcher slurm; if they are meant to be several runs, give each a --work-dir of its own.',
                'current',
                logging.WARNING,
            )
        if int(os.environ.get('WORLD_SIZE', 1)) > 1 and 'LOCAL_RANK' in os.environ:
            raise UserError(
                'torchrun has started several processes, each of which would do the same by itself; '
                'add --launcher pytorch'
            )
        return
    if launcher == 'pytorch':
        os.environ.setdefault('LOCAL_RANK', str(rank))
    for name in (*_VARIABLES[launcher], *(['SLURM_JOB_ID'] if launcher == 'slurm' else [])):
        if name not in os.environ:
            raise UserError(
                f'--launcher {launcher} expects to be started by {_LAUNCHED_BY[launcher]}, '
                f'but {name} is not set; for a single process leave the option out'
            )
    if launcher == 'slurm':
        # Jobs, and steps of a job, may share a node, and mmengine has one port for all of them.
        step = int(os.environ['SLURM_JOB_ID']) + 101 * int(os.environ.get('SLURM_STEP_ID', 0))
        os.environ.setdefault('MASTER_PORT', str(20000 + step % 10000))
        # Its first node is where the processes meet.
        os.environ['SLURM_NODELIST'] = os.environ.get('SLURM_STEP_NODELIST', os.environ.get('SLURM_NODELIST', ''))
    processes, gpus = int(os.environ.get('LOCAL_WORLD_SIZE', 1)), torch.cuda.device_count()
    if launcher == 'slurm' and 0 < gpus <= (place := int(os.environ['SLURM_LOCALID'])):
        raise UserError(
            f'process {place} of this node sees {gpus} GPU(s) only, but takes the one of its number; let each task see '
            'the GPUs of all (no --gpus-per-task or --gpu-bind), or start fewer'
        )
    if 0 < gpus < processes:
        raise UserError(
            f'{processes} processes on this machine but {gpus} GPU(s); start at most {gpus}, '
            'or hide the GPUs with CUDA_VISIBLE_DEVICES=-1'
        )


def require_strategy(cfg: Config) -> None:
    """Make sure that the strategy of a config, if it has one, is used and can work.

    Args:
        cfg (Config): The config of a training, with its ``launcher``.

    Raises:
        UserError: If the strategy or an option beside it would be ignored, or fail, or train something else.
    """
    strategy = cfg.get('strategy')
    if cfg.get('runner_type') != 'FlexibleRunner':
        if strategy:
            raise UserError("strategy is only read with runner_type='FlexibleRunner'; add that to the config")
        return
    ignored = [key for key in _RUNNER_ONLY if cfg.get(key)]
    if ignored:
        raise UserError(f'FlexibleRunner does not read {", ".join(ignored)}; set it in strategy or leave it out')
    name = type_name(strategy, 'DDPStrategy')
    averages = any(type_name(hook) == 'EMAHook' for hook in cfg.get('custom_hooks') or [])
    kind = next((kind for kind in _CLIPPING if name.endswith(kind)), None)
    if kind is None:
        if averages:
            raise UserError(
                'EMAHook does not work with FlexibleRunner, which loads a checkpoint before the hook has made its '
                "average, so that a training could not be resumed; leave out runner_type, for mmengine's Runner"
            )
        return
    if cfg.get('launcher', 'none') == 'none':
        raise UserError(f'{name} shards over processes; start it with tools/dist_train.sh or tools/slurm_train.sh')
    if name == 'DeepSpeedStrategy':
        raise UserError(
            'DeepSpeedStrategy runs code that may be in a checkpoint; set '
            "strategy.type='mmlavit.engine.strategy.SafeDeepSpeedStrategy'"
        )
    if kind == 'DeepSpeedStrategy':
        if (cfg.get('auto_scale_lr') or {}).get('enable'):
            raise UserError(f'{name} does not scale the learning rate; set optim_wrapper.optimizer.lr instead')
        if cfg.get('exact_resume'):  # mmengine's strategy has no hook write or read anything
            raise UserError(f'{name} does not keep the place in the data; set exact_resume=False')
        _require_deepspeed()
    # DeepSpeedOptimWrapper does not even take clip_grad=None.
    if cfg.optim_wrapper.get('clip_grad') or (kind == 'DeepSpeedStrategy' and 'clip_grad' in cfg.optim_wrapper):
        raise UserError(f'optim_wrapper.clip_grad does not work with {name}: {_CLIPPING[kind]}')
    if averages:
        raise UserError(f'EMAHook does not work with {name}, whose processes have no whole model; remove the hook')


def _require_deepspeed() -> None:
    """Raise a UserError unless there is a DeepSpeed that mmengine can use."""
    try:
        version = metadata.version('deepspeed')
    except metadata.PackageNotFoundError:
        version = None
    # 0.19 removed the 1-bit optimizers, which mmengine imports.
    if version is None or tuple(map(int, version.split('.')[:2])) >= (0, 19):
        found = f'deepspeed {version} is too new for mmengine' if version else 'deepspeed is not installed'
        raise UserError(f'{found}; install the version that was tried: pip install deepspeed==0.16.9')


def adapt_to_cpu(cfg: Config, training: bool) -> tuple[Config, list[str]]:
    """Change a config, on a copy, where it would only run on a GPU.

    Synchronised batch norm becomes batch norm (it refuses CPU tensors), mixed precision becomes bfloat16, memory is not
    pinned, and in a distributed run the model wrapper is named, since mmengine's default asks for a device number.

    Args:
        cfg (Config): The config of the run, with its ``launcher``.
        training (bool): Whether the optimizer will be built.

    Returns:
        tuple[Config, list[str]]: The config, and one line per change that affects results.

    Raises:
        UserError: If training asks for mixed precision in float16.
    """
    cfg = copy.deepcopy(cfg)
    notes = []
    if training and type_name(cfg.optim_wrapper) == 'AmpOptimWrapper':
        if cfg.optim_wrapper.get('dtype') not in (None, 'bfloat16'):
            raise UserError(
                f'mixed precision in {cfg.optim_wrapper.dtype} needs a GPU and none was found; set '
                "optim_wrapper.dtype='bfloat16'"
            )
        for key in ('dtype', 'loss_scale'):
            cfg.optim_wrapper.pop(key, None)
        cfg.optim_wrapper.type = 'BFloat16OptimWrapper'
        notes.append('No GPU: mixed precision is bfloat16, without a scale of the loss.')
    replaced = _replace_sync_bn(cfg.model)
    if cfg.pop('sync_bn', None) or replaced:
        notes.append('No GPU: SyncBN is built as BN, so each process normalises its own batch.')
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(name) is not None and cfg[name].get('pin_memory'):
            cfg[name].pin_memory = False
    if cfg.get('launcher', 'none') != 'none':
        if cfg.get('runner_type') != 'FlexibleRunner':
            cfg.model_wrapper_cfg = _wrapper_on_cpu(cfg, 'model_wrapper_cfg')
        elif type_name(cfg.setdefault('strategy', ConfigDict(type='DDPStrategy'))) == 'DDPStrategy':
            cfg.strategy.model_wrapper = _wrapper_on_cpu(cfg.strategy, 'model_wrapper')
        notes.append('No GPU: the processes talk over gloo.')
    return cfg, notes


def _wrapper_on_cpu(node: Mapping[str, Any], key: str) -> ConfigDict:
    """Give the model wrapper that ``node[key]`` asks for, or mmengine's default, for processes without a GPU."""
    wrapper = node.get(key) or ConfigDict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=node.get('find_unused_parameters', False),
    )
    return ConfigDict(wrapper, device_ids=None)


def _replace_sync_bn(node: Any) -> int:
    """Name plain batch norm wherever ``node`` names a synchronised one; give the number of places."""
    if isinstance(node, Mapping):
        found = 0
        if type_name(node) in _SYNC_BN:
            node['type'] = 'BN'
            found = 1
        return found + sum(_replace_sync_bn(value) for value in node.values())
    if isinstance(node, (list, tuple)):
        return sum(_replace_sync_bn(value) for value in node)
    return 0


def init_gloo(launcher: str, timeout: float | None = None) -> None:
    """Make the process group before mmengine would: its own way goes through ``torch.cuda``.

    Args:
        launcher (str): 'pytorch', 'slurm' or 'mpi'.
        timeout (float, optional): Seconds after which a missing answer is an error.

    Raises:
        UserError: If the address of the first process is not known.
    """
    environ = os.environ
    environ.update({name: environ[own] for name, own in zip(_TORCH, _VARIABLES[launcher], strict=True)})
    if 'MASTER_ADDR' not in environ:
        if launcher == 'slurm':
            environ['MASTER_ADDR'] = _first_slurm_host()
        elif launcher == 'mpi':
            raise UserError('--launcher mpi needs MASTER_ADDR, the host of the first process')
    environ.setdefault('MASTER_PORT', '29500')
    options = {} if timeout is None else {'timeout': datetime.timedelta(seconds=timeout)}
    dist.init_process_group('gloo', **options)


def _first_slurm_host() -> str:
    """Ask slurm for the host name of the job's first node."""
    nodes = os.environ['SLURM_NODELIST']  # of the step
    hosts = subprocess.run(['scontrol', 'show', 'hostname', nodes], check=True, capture_output=True, text=True)
    return hosts.stdout.split()[0]
