"""Mistakes of the user: one base class, one line, one exit code. Bugs keep their stack trace.

Every tool prints a :class:`UserError` without a stack trace and exits with code 2.
"""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from mmlavit_serve.errors import UserError

USER_ERROR_CODE = 2
# A training that a signal has stopped and that can be resumed: EX_TEMPFAIL of sysexits.h, "try again later". Not 128
# plus the number of the signal, with which a process also ends that has saved nothing.
STOPPED_CODE = 75

# How long a process waits for the first process of its machine to report the same mistake. A launcher
# ends the others as soon as one process fails, so it is the first that has to be heard.
_GRACE_SECONDS = 30


_SHOWN = 3


class ConfigError(UserError, ValueError):
    """An argument out of its range or a combination that cannot work."""


class DataError(UserError):
    """An image or annotation that cannot be used; the message names the file.

    It keeps its one line when it is raised in a worker of a data loader, where torch raises it again with the trace of
    the worker as its message.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f'{__name__}.{type(self).__name__}: ')[2].strip())


class EnvironmentProblem(UserError, ImportError):
    """A package is missing or unusable; the message says what to do about it."""


def first_few(names: Collection[object]) -> str:
    """Name the first three of many, for a message."""
    return ', '.join(map(str, list(names)[:_SHOWN])) + (', ...' if len(names) > _SHOWN else '')


def is_full_disk(error: Exception) -> bool:
    """Tell whether an error says that a disk is full, which is no mistake of the code."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def one_line_errors(local_rank: int = 0) -> Iterator[None]:
    """Turn a mistake of the user inside the block into one line on stderr and exit code 2.

    A full disk counts as one. Every other exception passes untouched, with its trace.

    Args:
        local_rank (int): Number of this process on its machine. Of several processes that meet the
            same mistake only number 0 reports it.

    Raises:
        SystemExit: With code 2, after a :class:`UserError`.
    """
    try:
        yield
    except (UserError, OSError) as error:
        if not isinstance(error, UserError) and not is_full_disk(error):
            raise
        if local_rank != 0:
            time.sleep(_GRACE_SECONDS)
        print(f'error: {error}', file=sys.stderr, flush=True)
        raise SystemExit(USER_ERROR_CODE) from None
