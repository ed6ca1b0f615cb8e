"""A list in a JSON file that grows entry by entry and can be read at any time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmlavit.errors import UserError

from .local_files import expand_home, write_file

_END = b'\n]\n'


class JsonList:
    """A JSON list in a file, an entry a line. After each entry the list is whole.

    The brackets that end the list are overwritten by the next entry together with new ones, in one call of the
    system. A process that is killed within that call can leave a last line that is cut off; :func:`read_entries`
    passes over it.

    Args:
        path (Path): The file. What it had is gone.
        entries (Iterable[Mapping]): The first entries.

    Raises:
        UserError: If the disk is full or the folder cannot be written to.
    """

    def __init__(self, path: Path, entries: Iterable[Mapping[str, Any]] = ()) -> None:
        self.path = path = expand_home(path)
        lines = [json.dumps(entry) for entry in entries]
        self._empty = not lines
        content = ('[\n' + ',\n'.join(lines)).encode()
        self._length = 1 if self._empty else len(content)  # without the end
        write_file(path, b'[]\n' if self._empty else content + _END)
        self._file = os.open(path, os.O_WRONLY)

    def __enter__(self) -> JsonList:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._file)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add an entry.

        Args:
            entry (Mapping): Values for JSON.

        Raises:
            UserError: If the disk is full; the list is as it was.
        """
        text = (('\n' if self._empty else ',\n') + json.dumps(entry)).encode()
        try:
            self._write(text + _END)
        except OSError as error:
            end = b']\n' if self._empty else _END
            self._write(end)  # over what was there, which takes no space
            os.ftruncate(self._file, self._length + len(end))
            raise UserError(f'{self.path} was not written: {error.strerror}; it has the entries before') from error
        self._length += len(text)
        self._empty = False

    def _write(self, content: bytes) -> None:
        """Write over what comes after the last entry."""
        done = 0
        while done < len(content):
            done += os.pwrite(self._file, content[done:], self._length + done)


def read_entries(path: Path) -> list[dict[str, Any]]:
    """Read a list that :class:`JsonList` wrote, also if its last line was cut off.

    Args:
        path (Path): The file.

    Returns:
        list[dict]: Its entries; none if there is no file.

    Raises:
        UserError: If it is something else.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding='utf-8', errors='replace').splitlines()
    entries = []
    for number, line in enumerate(lines, 1):
        line = line.rstrip(',')
        if line in ('', '[', ']', '[]'):
            continue
        try:
            entries.append(json.loads(line))
        except ValueError as error:
            if number < len(lines) or not lines[0].startswith('['):
                raise UserError(
                    f'{path} is not a list of predictions (line {number}); move it away, or choose another folder'
                ) from error
    return entries
