"""Mistakes of the user."""


class UserError(Exception):
    """Something the user can fix: a missing file, a wrong key, an option that cannot work here.

    The message says what is wrong, what was expected and what to do, in one line.
    """
