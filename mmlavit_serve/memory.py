"""How much memory a process can still take, and what an image would need: asked before, not when the machine swaps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from .errors import UserError

LABEL_BYTES = 16
"""Bytes for each pixel of a map of labels: 64 bits, and one copy."""

ROUGH_BYTES = 4096
"""More than a network that we know needs for a pixel. What is far below the limit by this number is not looked at."""

# Runtimes plan memory in their own ways: with the estimate of torch's tensors, OpenVINO took up to 1.5 times as much.
_MARGIN = 1.5

_PROC, _CGROUPS = Path('/proc'), Path('/sys/fs/cgroup')


class MemoryNeed(NamedTuple):
    """What a model needs for an image at its peak, as far as it grows with the image.

    Args:
        fixed (float): Bytes, whatever the size.
        seen (float): Bytes for each pixel that the network sees, after resizing.
        image (float): Bytes for each pixel of the image before that: what is found has its size.
    """

    fixed: float
    seen: float
    image: float

    def at(self, seen: tuple[int, int], image: tuple[int, int]) -> float:
        """Bytes for heights and widths after and before resizing."""
        return _MARGIN * (self.fixed + self.seen * seen[0] * seen[1]) + self.image * image[0] * image[1]


def available_memory() -> float | None:
    """Find out how much memory this process can take without swapping.

    Returns:
        float | None: Bytes: what the machine has free, or less where a container or a batch system sets a limit
        (control groups, version 1 or 2). None where the system does not say, as outside of Linux.
    """
    try:
        text = (_PROC / 'meminfo').read_text()
    except OSError:
        return None
    found = re.search(r'^MemAvailable:\s+(\d+) kB', text, re.MULTILINE)
    limits = [int(found[1]) * 1024.0] if found else []
    return min([*limits, *_group_limits()], default=None)


def _group_limits() -> list[float]:
    """List what is left of the limits of this process's control group and of those above it."""
    try:
        lines = (_PROC / 'self/cgroup').read_text().splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        _, controllers, path = line.split(':', 2)
        if controllers == '':
            root, names = _CGROUPS, ('memory.max', 'memory.current')
        elif 'memory' in controllers.split(','):
            root, names = _CGROUPS / 'memory', ('memory.limit_in_bytes', 'memory.usage_in_bytes')
        else:
            continue
        # In a container the path may be that of the machine, and the files lie at the root.
        folder = root / path.lstrip('/')
        for group in (folder, *folder.parents):
            if group.is_relative_to(root):
                left += _left_of(group, *names)
    return left


def _left_of(group: Path, limit: str, usage: str) -> list[float]:
    """Bytes that a control group may still take; empty if it has no limit. Cached files make room."""
    try:
        limit, used = (group / limit).read_text().strip(), int((group / usage).read_text())
        cached = re.findall(r'^(?:total_)?inactive_file (\d+)', (group / 'memory.stat').read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return []
    return [] if limit == 'max' else [max(0.0, int(limit) - used + max(map(int, cached), default=0))]


def require_memory(needed: float, shape: tuple[int, int], limit: float | None = None) -> None:
    """Make sure that there is memory for an image.

    Args:
        needed (float): Bytes.
        shape (tuple[int, int]): Height and width of the image.
        limit (float, optional): Bytes that may be taken; None: what is available.

    Raises:
        UserError: If there is not.
    """
    there = available_memory() if limit is None else limit
    if there is not None and needed > there:
        what = 'are available' if limit is None else 'are allowed'
        raise UserError(
            f'the image is {shape[0]}x{shape[1]} and needs about {needed / 1e9:.1f} GB of memory, but '
            f'{there / 1e9:.1f} GB {what}; make it smaller, cut it into parts, or raise the limit (memory_limit)'
        )
