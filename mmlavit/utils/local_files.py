"""Local files that are there whole or not at all.

mmengine writes checkpoints in place: a process that ends meanwhile leaves half a file under the name of a whole one. So
``import mmlavit`` registers a backend of its own for local files with mmengine.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from mmlavit.errors import UserError

_FIRST_FILES = 1 << 18  # bytes
_PREFIX = 40  # characters of a name that a partial file has, so that names of any length can be written


class WholeFileBackend(LocalBackend):
    """mmengine's backend of local files, except that no file is ever seen half written."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file; see :func:`write_file`."""
        write_file(filepath, obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text to a file; see :func:`write_file`."""
        write_file(filepath, obj.encode(encoding))


def register_local_files() -> None:
    """Have mmengine write all local files through this module. Harmless if called twice."""
    register_backend('local', WholeFileBackend, force=True, prefixes='')


def write_file(path: str | Path, content: bytes) -> None:
    """Write a file beside its place, then move it there.

    The content is on the disk before the name is: after a crash of the machine, too, there is the old file or the new
    one.

    Args:
        path (str or Path): The file. Its folder is made if there is none. Where it is a link, what it points to is
            written.
        content (bytes): What it is to have.

    Raises:
        UserError: If the disk is full or the folder cannot be written to. A file that was there before is as it was.
    """
    path = expand_home(path)
    partial = None
    try:
        place = Path(os.path.realpath(path))
        place.parent.mkdir(parents=True, exist_ok=True)
        # In the same folder, hence on the same disk, where moving is one step.
        partial = place.with_name(f'.{place.name[:_PREFIX]}.{uuid.uuid4().hex}.partial')
        with partial.open('xb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, place)
        _sync_folder(place.parent)
    except BaseException as error:
        if partial is not None:
            with suppress(OSError):
                partial.unlink()
        if not isinstance(error, OSError):
            raise
        reason = error.strerror or error
        raise UserError(f'{path} was not written: {reason}; a file that was there before is as it was') from error


def expand_home(path: str | Path) -> Path:
    """Give a path with the home folder in the place of ``~``, which a shell leaves where it stands behind ``=``.

    Unlike ``Path.expanduser`` it leaves a name such as ``~draft.png``, of no user, as it is.
    """
    return Path(os.path.expanduser(path))


def require_folder(folder: str | Path, option: str) -> None:
    """Make sure, before a run starts, that files can be written to a folder.

    Args:
        folder (str or Path): It is made if there is none.
        option (str): The option of the command line that names it.

    Raises:
        UserError: If they cannot.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:  # logs and a config, for which a full disk has no place
            file.write(bytes(_FIRST_FILES))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f'cannot write to the folder {folder} ({reason}); choose another with {option}') from error


def remove_partial_files(folder: str | Path) -> None:
    """Remove what processes that were killed have left of :func:`write_file`; only where nothing writes now."""
    for path in Path(folder).glob('.*.partial'):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Have the new name on the disk; not every file system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
