"""Checks on checkpoint files."""

from __future__ import annotations

import os.path as osp
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config

from .errors import UserError


def require_checkpoint(path: str, what: str = 'checkpoint') -> None:
    """Make sure that a checkpoint file exists. Addresses such as ``https://...`` are left alone.

    Args:
        path (str): File or address.
        what (str): How the message calls it.

    Raises:
        UserError: If it is a file and does not exist.
    """
    # Two letters at least, so that no drive letter counts as the scheme of an address.
    if not re.match(r'\w{2,}:', path) and not osp.isfile(osp.expanduser(path)):
        raise UserError(f'{what} {path} does not exist; expected a .pth file')


def require_checkpoints(cfg: Config) -> None:
    """Make sure that the weights a config starts from exist.

    Args:
        cfg (Config): The config, with ``load_from`` and any ``init_cfg`` of type ``Pretrained``.

    Raises:
        UserError: If a file is missing.
    """
    if cfg.get('load_from'):
        require_checkpoint(cfg.load_from)
        return
    for path in _pretrained(cfg.model):
        require_checkpoint(path, 'init_cfg.checkpoint')


def _pretrained(node: Any) -> Iterator[str]:
    """Yield the checkpoints of every ``init_cfg=dict(type='Pretrained', ...)`` below ``node``."""
    if isinstance(node, Mapping):
        if node.get('type') == 'Pretrained' and isinstance(node.get('checkpoint'), str):
            yield node['checkpoint']
        for value in node.values():
            yield from _pretrained(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _pretrained(value)
