"""The C library's allocator, from which torch takes the memory of tensors on a CPU (ours)."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_VARIABLES = ('MALLOC_TRIM_THRESHOLD_', 'MALLOC_MMAP_THRESHOLD_', 'MALLOC_TOP_PAD_')

KEPT_BYTES = 64 << 20
"""Bytes of freed memory that the process keeps at most, beyond what lies between blocks in use."""


@cache
def keep_freed_memory() -> bool:
    """Let glibc keep some freed memory for the next layer, instead of giving it back to the system after each.

    The system clears and maps each page at its first use. Where each layer frees and allocates maps of some MB, that
    can take more than a third of the time.

    Returns:
        bool: False if nothing was changed: another C library, or the user has set thresholds in the environment.
    """
    if sys.platform != 'linux' or any(name in os.environ for name in _VARIABLES):
        return False
    if 'glibc.malloc' in os.environ.get('GLIBC_TUNABLES', ''):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    # Once one threshold is set, glibc no longer adapts the other. Larger blocks than 32 MB always come from the system:
    # older versions accept no more.
    return bool(mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)) and bool(mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES // 2))
