"""Where tools print their tables."""

from __future__ import annotations

import sys

from rich.console import Console


def table_console(width: int) -> Console:
    """Make a console that prints text as it is, brackets in the names of files and in messages included.

    Args:
        width (int): Columns where the output is no terminal, such as a file, whose width nobody knows.
    """
    return Console(width=None if sys.stdout.isatty() else width, highlight=False, markup=False)
