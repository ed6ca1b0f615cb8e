"""Where the processes of a validation or test put their results together."""

from __future__ import annotations

import os
import os.path as osp
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from mmengine.dist import all_gather_object, barrier, broadcast_object_list, get_world_size, is_main_process
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook

from mmlavit.errors import UserError


class CollectHook(Hook):
    """Have metrics put together what all processes found in a folder that all of them see.

    mmengine takes the current folder, and ends at the first validation, perhaps after hours, where the nodes have one
    each or it cannot be written to. This looks before the first iteration, and takes the work dir where it can.

    Args:
        mode (str): 'train', with its validations, or 'test'.
    """

    def __init__(self, mode: str) -> None:
        self.evaluator = 'val_evaluator' if mode == 'train' else 'test_evaluator'
        self._prefix = ''
        self._count = 0

    def before_run(self, runner) -> None:
        """Find the folder; a UserError if there is none."""
        if get_world_size() > 1 and _needs_folder(runner.cfg.get(self.evaluator)):
            folder = find_shared_folder([runner.work_dir, os.getcwd()])
            name = [f'.dist_test_{uuid4().hex}']  # of this run alone: others may have the same work dir
            broadcast_object_list(name)
            self._prefix = osp.join(folder, name[0])

    def before_val(self, runner) -> None:
        """Name it to the metrics of a validation."""
        self._name(runner.val_loop.evaluator)

    def before_test(self, runner) -> None:
        """Name it to the metrics of a test."""
        self._name(runner.test_loop.evaluator)

    def _name(self, evaluator: Evaluator) -> None:
        if not self._prefix:
            return
        for metric in evaluator.metrics:
            if metric.collect_device == 'cpu' and (metric.collect_dir or self._prefix).startswith(self._prefix):
                # Another each time, since the first process removes it while others may be at the next metric.
                self._count += 1
                metric.collect_dir = f'{self._prefix}_{self._count}'


def _needs_folder(evaluator: Any) -> bool:
    """Tell by the config of an evaluator whether a metric of it puts results together in a folder not named."""
    if not evaluator:
        return False
    metrics = evaluator.get('metrics', evaluator) if isinstance(evaluator, Mapping) else evaluator
    metrics = metrics if isinstance(metrics, Sequence) else [metrics]
    return any(
        not isinstance(metric, Mapping) or (metric.get('collect_device') != 'gpu' and not metric.get('collect_dir'))
        for metric in metrics
    )


def find_shared_folder(folders: Iterable[str]) -> str:
    """Find the first of some folders that all processes see and may write to; called by all of them.

    Args:
        folders (Iterable[str]): Folders, as each process names them.

    Returns:
        str: The folder.

    Raises:
        UserError: If there is none.
    """
    folders = list(folders)
    for folder in folders:
        name = [f'.seen_by_all_{uuid4().hex}']
        broadcast_object_list(name)
        probe = Path(folder, name[0])
        if is_main_process():
            with suppress(OSError):
                probe.touch()
        barrier()  # it is there by now
        seen = all_gather_object(osp.isfile(probe) and os.access(folder, os.W_OK))
        if is_main_process():
            with suppress(OSError):
                probe.unlink()
        if all(seen):
            return folder
    raise UserError(
        f'validation and test need a folder that all processes see and may write to, but neither {folders[0]} (the '
        f'work dir) nor {folders[-1]} (the current folder) is one; name one that all nodes share by --work-dir'
    )
