"""Checkpoints of which one is always whole."""

from __future__ import annotations

import os.path as osp
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

from mmlavit.utils.local_files import remove_partial_files


@HOOKS.register_module(name='CheckpointHook', force=True)
class WholeCheckpointHook(CheckpointHook):
    """mmengine's hook, under its name, except that an old checkpoint is deleted after the new one is there.

    mmengine deletes first, so that with ``max_keep_ckpts=1`` a process that ends meanwhile leaves nothing. And the best
    checkpoint of a work dir that was moved or copied is the one in it, not that in the folder of before.
    """

    def before_train(self, runner) -> None:
        """Prepare; the argument is that of mmengine's hook."""
        super().before_train(runner)
        if self.out_dir != runner.work_dir and is_main_process():
            remove_partial_files(self.out_dir)
        if runner._resume and self.last_ckpt is None:
            # mmengine writes the checkpoint of an epoch once more if its validation was the best so far, also if that
            # is made up for after a resumption; without it, who was best would be forgotten by the next one.
            last = runner.message_hub.get_info('last_ckpt')
            self.last_ckpt = last and self._find_here(last)
        if self.save_best:
            self._best = [path and self._find_here(path) for path in self._best]

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

    def _save_best_checkpoint(self, runner, metrics: Mapping[str, Any]) -> None:
        if not self.save_best:
            return
        before = self._best
        self._best = [None] * len(before)  # the base class deletes nothing
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            self._best = [new or old for new, old in zip(self._best, before, strict=True)]
        for new, old in zip(self._best, before, strict=True):
            if old and old != new:
                self._delete(old)
                runner.logger.info(f'The previous best checkpoint {old} is removed')

    def _publish_model(self, runner, ckpt_path: str | None) -> None:
        if ckpt_path:  # of a result that was best before, in another work dir, there is no file here
            super()._publish_model(runner, ckpt_path)

    @property
    def _best(self) -> list[str | None]:
        """The best checkpoint by each of ``key_indicators``; the base class keeps one, or a dict of several."""
        keys = self.key_indicators
        return [self.best_ckpt_path] if len(keys) == 1 else [self.best_ckpt_path_dict[key] for key in keys]

    @_best.setter
    def _best(self, paths: Sequence[str | None]) -> None:
        if len(paths) == 1:
            (self.best_ckpt_path,) = paths
        else:
            self.best_ckpt_path_dict.update(zip(self.key_indicators, paths, strict=True))

    def _find_here(self, path: str) -> str | None:
        here = self.file_backend.join_path(self.out_dir, osp.basename(path))
        return here if self.file_backend.exists(here) else None

    def _delete(self, path: str) -> None:
        if is_main_process():
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):  # DeepSpeed's
                self.file_backend.rmtree(path)
