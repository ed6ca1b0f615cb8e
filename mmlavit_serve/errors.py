"""Mistakes of the user."""

from pathlib import Path


class UserError(Exception):
    """Something the user can fix: a missing file, a wrong key, an option that cannot work here.

    The message says what is wrong, what was expected and what to do, in one line.
    """


def is_file(path: Path) -> bool:
    """Tell whether there is such a file.

    Args:
        path (Path): Its path.

    Raises:
        UserError: If that cannot be told, as of a name that is too long, or in a folder that may not be entered.
    """
    try:
        return path.is_file()
    except OSError as error:
        raise UserError(f'{str(path)[:200]} cannot be read: {error.strerror}') from error
