"""The processors of this machine."""

from __future__ import annotations

import os


def count_processors() -> int:
    """Count those that this process may use."""
    affinity = getattr(os, 'sched_getaffinity', None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
