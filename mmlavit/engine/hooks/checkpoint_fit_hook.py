"""Say what of a checkpoint does not fit."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from mmengine.hooks import EMAHook, Hook

from mmlavit.errors import UserError
from mmlavit.utils.checkpoint import has_weights_only
from mmlavit.utils.weights import load_what_fits, require_whole

from ..plain_model import find_plain_model


class CheckpointFormatHook(Hook):
    """Refuse to resume from a file of weights, and give weights alone the form that mmengine's hooks expect.

    Args:
        path (str): The file or address, for the message.
        begins (bool): Whether a training begins with it. It then starts from the averaged weights, and its own average
            begins anew: mmpretrain's ``EMAHook`` would go on with that of the earlier training, and its length.
    """

    priority = 'HIGHEST'  # before EMAHook, which looks for 'state_dict'

    def __init__(self, path: str, begins: bool = False) -> None:
        self.path = path
        self.begins = begins

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Look into it."""
        if self.begins:
            checkpoint.pop('ema_state_dict', None)  # the weights that were not averaged; those that were stay
        if 'state_dict' not in checkpoint:
            weights = dict(checkpoint)
            checkpoint.clear()
            checkpoint['state_dict'] = weights
        # mmengine cannot go on without the history of the log, which all its training checkpoints have.
        if runner._resume:
            if 'message_hub' not in checkpoint:
                raise has_weights_only(self.path)
            self._require_state(runner, checkpoint)
            self._require_average(runner, checkpoint)
            if find_plain_model(runner) is not None:
                _tell_what_stays(runner, checkpoint)

    def _require_state(self, runner, checkpoint: Mapping[str, Any]) -> None:
        """Make sure that a training can go on: mmengine would begin anew what a checkpoint lacks, without a word."""
        wanted = dict(optimizer='optimizer', param_schedulers='schedule')
        lacks = [
            what
            for key, what in wanted.items()
            if key not in checkpoint and (key == 'optimizer' or runner.param_schedulers)
        ]
        if lacks:
            raise UserError(
                f'{self.path} lacks the state of the {" and the ".join(lacks)}, like all best_*.pth, which are for '
                'tests: resume from epoch_N.pth or iter_N.pth, or start a new training with load_from=FILE'
            )

        schedulers, saved = runner.param_schedulers, checkpoint.get('param_schedulers')
        if isinstance(schedulers, list) and isinstance(saved, list) and len(schedulers) != len(saved):
            raise UserError(  # mmengine would pair them by their places
                f'{self.path} has the states of {len(saved)} schedules, and the config has {len(schedulers)} '
                '(param_scheduler): resume with those of before, or start a new training with load_from=FILE'
            )

    def _require_average(self, runner, checkpoint: Mapping[str, Any]) -> None:
        """Make sure that averaged weights are not taken for those that were trained, which only EMAHook tells apart."""
        if 'ema_state_dict' in checkpoint and not any(isinstance(hook, EMAHook) for hook in runner.hooks):
            raise UserError(
                f'{self.path} is of a training with EMAHook, and the config has none: add the hook to custom_hooks, or '
                'start a new training from the averaged weights with load_from=FILE'
            )


class CheckpointFitHook(Hook):
    """Refuse a checkpoint of another model, or say in one line what of it was not loaded.

    mmengine logs what does not fit, and tests or trains with what was in its place.

    Args:
        path (str): The file or address, for the messages.
        whole (bool): Whether all weights of the model have to be there, as for a test or to resume. Otherwise it is
            enough that some are.
    """

    priority = 'LOWEST'  # after EMAHook, which puts the averaged weights into place

    def __init__(self, path: str, whole: bool) -> None:
        self.path = path
        self.whole = whole

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Load the weights, before mmengine does."""
        model = find_plain_model(runner)
        if model is None:
            return
        load = require_whole if self.whole else load_what_fits
        load(model, checkpoint.get('state_dict', checkpoint), self.path)


def _tell_what_stays(runner, checkpoint: Mapping[str, Any]) -> None:
    """Say which settings of the config have no effect, since a resumed training keeps its own."""
    groups = getattr(runner.optim_wrapper, 'param_groups', None)
    saved = checkpoint['optimizer'].get('param_groups') if isinstance(checkpoint['optimizer'], Mapping) else None
    found: dict[str, None] = {}  # each once
    for ours, theirs in zip(groups or (), saved or (), strict=False):
        for keys in (('initial_lr', 'lr'), ('weight_decay',)):  # only schedules write the first
            name = keys[-1]
            now, before = (next((group[key] for key in keys if key in group), None) for group in (ours, theirs))
            if now is not None and before is not None and not math.isclose(now, before):
                found.setdefault(f'{name} of the optimizer (config {now:g}, checkpoint {before:g})')
    schedulers, saved = runner.param_schedulers, checkpoint.get('param_schedulers')
    if isinstance(schedulers, list) and isinstance(saved, list):
        for number, (ours, theirs) in enumerate(zip(schedulers, saved, strict=True)):
            for key in _settings(ours):
                now, before = vars(ours)[key], theirs.get(key)
                if before is not None and now != before:
                    now, before = (sorted(value) if isinstance(value, Counter) else value for value in (now, before))
                    found.setdefault(f'param_scheduler.{number}.{key} (config {now}, checkpoint {before})')
    if found:
        anew = 'start a new training with --cfg-options load_from=FILE'
        if any(type(hook).__name__ == 'DistillationHook' for hook in runner.hooks):  # which starts from its teacher
            anew = 'distil anew in another work dir'
        runner.logger.warning(
            f'A resumed training keeps the settings of its checkpoint, not those of the config: {", ".join(found)}; to '
            f"use the config's, {anew}"
        )


def _settings(scheduler: Any) -> list[str]:
    """Give the arguments that a scheduler was made with and keeps, without what changes as it runs."""
    arguments = {name for kind in type(scheduler).__mro__ for name in inspect.signature(kind.__init__).parameters}
    return sorted((arguments & vars(scheduler).keys()) - {'last_step', 'optimizer', 'verbose'})
