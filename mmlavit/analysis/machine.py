"""What figures were measured on: the device and the versions of packages."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from mmlavit.environment import find_installed
from mmlavit.version import __version__


def device_name(device: str) -> str:
    """Return the name of the processor.

    Args:
        device (str): 'cpu', or such as 'cuda' or 'cuda:1'; of another kind, its own name is all there is.
    """
    kind = torch.device(device).type
    if kind != 'cpu':
        return torch.cuda.get_device_name(device) if kind == 'cuda' else device
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


@cache
def versions() -> dict[str, str]:
    """Return the versions of what takes part, by the name of the distribution."""
    found = {'mmlavit': __version__, 'python': platform.python_version(), 'torch': torch.__version__}
    for part in find_installed().values():
        found[part.dist or part.module] = part.version
    for name in ('timm', 'onnxruntime', 'openvino'):
        for dist in metadata.distributions(name=name):
            found[name] = dist.version
    return found


def software() -> str:
    """Return one line with all versions."""
    return ', '.join(f'{name} {version}' for name, version in versions().items())
