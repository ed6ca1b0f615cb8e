"""Where the processes of a validation or test put their results together."""

from __future__ import annotations

import os
import os.path as osp
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from mmengine.dist import all_gather_object, broadcast_object_list, get_world_size, is_main_process
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook

from mmlavit.errors import UserError


class CollectHook(Hook):
    """Have metrics put together what all processes found in a folder that all of them see.

    mmengine takes the current folder, and ends at the first validation, perhaps after hours, where the nodes have one
    each or it cannot be written to. This looks before the first iteration, and takes the work dir where it can.
    """

    def __init__(self) -> None:
        self._folder: str | None = None

    def before_run(self, runner) -> None:
        """Find the folder; a UserError if there is none."""
        if get_world_size() > 1 and any(runner.cfg.get(key) for key in ('val_evaluator', 'test_evaluator')):
            self._folder = find_shared_folder([runner.work_dir, os.getcwd()])

    def before_val(self, runner) -> None:
        """Name it to the metrics of a validation."""
        self._name(runner.val_loop.evaluator)

    def before_test(self, runner) -> None:
        """Name it to the metrics of a test."""
        self._name(runner.test_loop.evaluator)

    def _name(self, evaluator: Evaluator) -> None:
        if self._folder is None:
            return
        for number, metric in enumerate(evaluator.metrics):
            if metric.collect_device == 'cpu' and metric.collect_dir is None:
                # One for each, since the first process removes it while others may be at the next metric.
                metric.collect_dir = osp.join(self._folder, f'.dist_test_{number}')


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
        all_gather_object(None)  # it is there by now
        seen = all_gather_object(probe.is_file() and os.access(folder, os.W_OK))
        if is_main_process():
            probe.unlink(missing_ok=True)
        if all(seen):
            return folder
    raise UserError(
        f'validation and test need a folder that all processes see and may write to, but neither {folders[0]} (the '
        f'work dir) nor {folders[-1]} (the current folder) is one; name one that all nodes share by --work-dir'
    )
