"""Checkpoints of which one is always whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS


@HOOKS.register_module(name='CheckpointHook', force=True)
class WholeCheckpointHook(CheckpointHook):
    """mmengine's hook, under its name, except that an old checkpoint is deleted after the new one is there.

    mmengine deletes first, so that with ``max_keep_ckpts=1`` a process that ends meanwhile leaves nothing.
    """

    def _save_checkpoint_with_step(self, runner, step: int, meta: Mapping[str, Any]) -> None:
        limit, outdated = self.max_keep_ckpts, []
        if limit > 0 and (not self.keep_ckpt_ids or self.keep_ckpt_ids[-1] != step):
            if len(self.keep_ckpt_ids) == limit:
                outdated.append(self.keep_ckpt_ids.popleft())
            self.keep_ckpt_ids.append(step)
            # In the checkpoint, so that a training that ends before the deletion deletes when it is resumed.
            runner.message_hub.update_info('keep_ckpt_ids', [*outdated, *self.keep_ckpt_ids])
        self.max_keep_ckpts = -1  # the base class deletes nothing
        try:
            super()._save_checkpoint_with_step(runner, step, meta=meta)
        finally:
            self.max_keep_ckpts = limit
        for old in outdated:
            self._delete(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old)))

    def _delete(self, path: str) -> None:
        if is_main_process():
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):  # DeepSpeed's
                self.file_backend.rmtree(path)
