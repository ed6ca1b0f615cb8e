"""Which checkpoint to resume from."""

from __future__ import annotations

import logging
import shutil
import zipfile
from pathlib import Path

import torch
from mmengine.logging import print_log

from mmlavit.errors import UserError
from mmlavit.utils.local_files import write_file

# Where a training saves itself that is asked to end. One name, so that many interruptions leave one file.
INTERRUPTED = 'interrupted.pth'
# Where it notes after which iteration it has validated last: checkpoints are saved before the validation.
_VALIDATED = 'last_validation'


def find_whole_checkpoint(work_dir: str) -> str | None:
    """Find the newest checkpoint of a training that is whole.

    mmengine takes the one that ``last_checkpoint`` names, without looking. Here that one comes first, too, and if it is
    damaged or missing, the newest other: in the folder, or beside the one that is named, if the folder has none.

    Args:
        work_dir (str): Where the training writes.

    Returns:
        str, optional: The file; None if there is none, or if checkpoints are folders, as DeepSpeed's, or in an object
        storage, which are left to mmengine.

    Raises:
        UserError: If there are checkpoints, and all are damaged.
    """
    folder = Path(work_dir)
    files = [*_find_numbered(folder), *folder.glob(INTERRUPTED)]
    if any(file.is_dir() for file in files):
        return None
    files.sort(key=lambda file: file.stat().st_mtime, reverse=True)
    note = folder / 'last_checkpoint'
    text = note.read_text().strip() if note.is_file() else ''
    if '://' in text:
        return None
    if text:
        named = Path(text)
        if (folder / named.name).exists():
            named = folder / named.name  # also if the folder was moved or copied
        if named.is_dir():
            return None
        # In out_dir of CheckpointHook; not in the original of a folder that was copied, which has checkpoints itself.
        elsewhere = [] if _find_numbered(folder) else _find_numbered(named.parent)
        others = dict.fromkeys(file for file in (*files, *elsewhere) if file.resolve() != named.resolve())
        files = [named, *sorted(others, key=lambda file: file.stat().st_mtime, reverse=True)]
    for file in files:
        if is_whole(file):
            return str(file)
        reason = 'damaged' if file.is_file() else 'missing'
        print_log(f'{file} is {reason}; resuming from an earlier checkpoint', 'current', logging.WARNING)
    if files:
        raise UserError(
            f'no checkpoint in {work_dir} is whole ({", ".join(file.name for file in files)}); name another with '
            '--resume FILE, or train without --resume'
        )
    return None


def has_begun(work_dir: str) -> bool:
    """Tell whether a training has written a checkpoint, here or elsewhere.

    Args:
        work_dir (str): Where the training writes.
    """
    folder = Path(work_dir)
    return (folder / 'last_checkpoint').is_file() or bool([*_find_numbered(folder), *folder.glob(INTERRUPTED)])


def note_validation(work_dir: str, iteration: int) -> None:
    """Note that a validation has ended, with all that comes of it.

    Args:
        work_dir (str): Where the training writes.
        iteration (int): How many iterations the weights have been trained for.
    """
    write_file(Path(work_dir, _VALIDATED), str(iteration).encode())


def forget_validation(work_dir: str) -> None:
    """Remove the note of an earlier training.

    Args:
        work_dir (str): Where the training writes.
    """
    Path(work_dir, _VALIDATED).unlink(missing_ok=True)


def was_validated(work_dir: str, iteration: int) -> bool:
    """Tell whether the last validation was that of a checkpoint.

    Args:
        work_dir (str): Where the training writes.
        iteration (int): The checkpoint's.
    """
    note = Path(work_dir, _VALIDATED)
    return note.is_file() and note.read_text() == str(iteration)


def remove_interrupted(work_dir: str, last: str | None = None) -> None:
    """Remove what an interruption has left of a training that has come to its end since.

    Args:
        work_dir (str): Where the training has written. ``last_checkpoint`` then names the newest checkpoint.
        last (str, optional): The newest checkpoint as far as mmengine knows, for trainings that write elsewhere.
    """
    folder = Path(work_dir)
    if (folder / INTERRUPTED).is_dir():  # DeepSpeed's
        shutil.rmtree(folder / INTERRUPTED)
    (folder / INTERRUPTED).unlink(missing_ok=True)
    note = folder / 'last_checkpoint'
    if note.is_file() and Path(note.read_text().strip()).name == INTERRUPTED:
        files = _find_numbered(folder)
        newest = max(files, key=lambda file: file.stat().st_mtime) if files else last
        if newest:
            write_file(note, str(newest).encode())
        else:
            note.unlink()


def is_whole(file: Path) -> bool:
    """Tell whether a checkpoint of ``torch.save`` can be read to its end, by the checksums in it."""
    try:
        with zipfile.ZipFile(file) as archive:
            if archive.testzip() is not None:
                return False
        torch._C.PyTorchFileReader(str(file))  # which refuses some directories that zipfile reads
        return True
    except Exception:  # of a single wrong bit, zipfile may say that the file is encrypted, or of a method unknown to it
        return False


def _find_numbered(folder: Path) -> list[Path]:
    """Find the checkpoints of epochs and iterations, in no order."""
    return [*folder.glob('epoch_*.pth'), *folder.glob('iter_*.pth')]
