"""What a part of a config builds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def type_name(node: Mapping[str, Any] | None, default: str = '') -> str:
    """Give the bare name of what a part of a config builds, which may be said by name, with a scope, or as a class.

    Args:
        node (Mapping, optional): Part of a config, with 'type'.
        default (str): The name where there is none.
    """
    kind = (node or {}).get('type', default)
    return getattr(kind, '__name__', str(kind)).rpartition('.')[2]
