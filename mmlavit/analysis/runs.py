"""Work dirs of trainings: config, checkpoints and log."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mmlavit.engine.hooks.diagonality_loss_hook import DEFAULT_WEIGHT
from mmlavit.errors import UserError
from mmlavit.utils.checkpoint import load_checkpoint
from mmlavit.utils.config_types import type_name
from mmlavit.utils.weights import load_weights

from .curves import Log
from .trained import Trained, load_trained


class Run(NamedTuple):
    """A training.

    Args:
        folder (Path): Its work dir.
        trained (Trained): The model with the weights of a checkpoint.
        log (Log, optional): What it logged; None if there is no log.
    """

    folder: Path
    trained: Trained
    log: Log | None

    @property
    def diagonality_weight(self) -> float | None:
        """Weight of the diagonality loss; None without it."""
        hooks = self.trained.cfg.get('custom_hooks') or []
        weights = [hook.get('weight', DEFAULT_WEIGHT) for hook in hooks if type_name(hook) == 'DiagonalityLossHook']
        return weights[0] if weights else None


def open_run(folder: Path, checkpoint: Path | None = None, device: str = 'cpu', config: Path | None = None) -> Run:
    """Open a work dir.

    Args:
        folder (Path): The work dir, with the config that mmengine puts there.
        checkpoint (Path, optional): Weights; None: the last of the training.
        device (str): Such as 'cpu' or 'cuda:0'.
        config (Path, optional): Config of the model and its test data; None: the newest in the work dir.

    Returns:
        Run: The training.

    Raises:
        UserError: If there is no config or no checkpoint, or it does not fit.
        EnvironmentProblem: If the toolbox of the config cannot work as installed.
    """
    configs = sorted(folder.glob('*.py'), key=lambda path: path.stat().st_mtime)
    if config is None and not configs:
        raise UserError(f'{folder} has no config; expected the work dir of a training')
    trained = load_trained(str(config or configs[-1]), str(checkpoint or find_last_checkpoint(folder)), device)
    try:
        log = Log.read(folder)
    except UserError:
        log = None
    return Run(folder, trained, log)


def find_last_checkpoint(folder: Path) -> Path:
    """Find the last checkpoint of a work dir, which may have been moved since.

    Args:
        folder (Path): The work dir.

    Returns:
        Path: The checkpoint.

    Raises:
        UserError: If there is none.
    """
    note = folder / 'last_checkpoint'
    if note.is_file():
        written = Path(note.read_text().strip())
        for path in (folder / written.name, written):  # the second with an out_dir of the hook's own
            if path.is_file():
                return path
    checkpoints = find_checkpoints(folder)
    if not checkpoints:
        raise UserError(f'{folder} has no checkpoint; expected epoch_N.pth or iter_N.pth')
    return checkpoints[-1]


def find_checkpoints(folder: Path) -> list[Path]:
    """List the regular checkpoints of a work dir, the last one last; not those with the best results."""
    numbers = {path: re.fullmatch(r'(?:epoch|iter)_(\d+)', path.stem) for path in folder.glob('*.pth')}
    return sorted((path for path, match in numbers.items() if match), key=lambda path: int(numbers[path][1]))


def each_checkpoint(run: Run) -> Iterator[int]:
    """Load one checkpoint after the other into the model of a run, and in the end the one it had.

    Args:
        run (Run): The training.

    Yields:
        int: The iteration that a checkpoint was saved after.
    """
    before = {name: tensor.clone() for name, tensor in run.trained.model.state_dict().items()}
    try:
        checkpoints = find_checkpoints(run.folder)
        last = load_checkpoint(str(find_last_checkpoint(run.folder)))['meta']['iter'] if checkpoints else 0
        for path in checkpoints:
            content = load_checkpoint(str(path))
            if content['meta']['iter'] > last:  # of an earlier, longer training in the same folder
                continue
            fit = load_weights(run.trained.model, content['state_dict'])
            if not (fit.missing or fit.misshapen):  # else of another model that was trained in the same folder
                yield content['meta']['iter']
    finally:
        run.trained.model.load_state_dict(before)
