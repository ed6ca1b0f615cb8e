"""Checks of the arguments of backbones: each refuses in one line, with the name of the argument."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

from mmlavit.errors import ConfigError


def is_integer(value: Any) -> bool:
    """Tell whether it is an integer, which True is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_positive_integer(value: Any) -> bool:
    """Tell whether it is an integer above 0."""
    return is_integer(value) and value > 0


def is_number(value: Any) -> bool:
    """Tell whether it is a finite number."""
    return (isinstance(value, float) or is_integer(value)) and isfinite(value)


def is_sequence(value: Any) -> bool:
    """Tell whether it is a list, a tuple or a range."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def require_integer(name: str, value: Any) -> None:
    """Make sure that an argument is an integer above 0.

    Raises:
        ConfigError: If it is not; the message names it.
    """
    if not is_positive_integer(value):
        raise ConfigError(f'{name} must be a positive integer, got {value!r}')


def require_number(name: str, value: Any, low: float, high: float) -> None:
    """Make sure that an argument is a finite number in [low, high).

    Raises:
        ConfigError: If it is not; the message names it.
    """
    if not is_number(value):
        raise ConfigError(f'{name} must be a finite number, got {value!r}')
    if not low <= value < high:
        raise ConfigError(f'{name} must be in [{low:g}, {high:g}), got {value!r}')


def require_flags(**flags: bool) -> None:
    """Make sure that arguments are True or False.

    Raises:
        ConfigError: If one is not; the message names it.
    """
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ConfigError(f'{name} must be True or False, got {value!r}')


def resolve_stages(out_indices: Sequence[int], frozen_stages: int) -> tuple[tuple[int, ...], int]:
    """Check which stages give maps and which are frozen.

    Args:
        out_indices (Sequence[int]): Increasing numbers of stages.
        frozen_stages (int): -1, or the number of frozen stages.

    Returns:
        tuple[tuple[int, ...], int]: Both.

    Raises:
        ConfigError: If one is out of its range; the message names it.
    """
    several = is_sequence(out_indices) and len(out_indices) > 0
    if not several or not all(is_integer(i) and i in range(4) for i in out_indices) or not _increases(out_indices):
        raise ConfigError(f'out_indices must be increasing stage indices in 0..3, got {out_indices!r}')
    outs = tuple(out_indices)
    if not is_integer(frozen_stages) or frozen_stages not in range(-1, outs[-1] + 2):
        raise ConfigError(f'frozen_stages must be in -1..{outs[-1] + 1} for out_indices {outs}, got {frozen_stages!r}')
    return outs, frozen_stages


def _increases(numbers: Sequence[int]) -> bool:
    return sorted(set(numbers)) == [*numbers]


def resolve_layers(layers: Sequence[int], depth: int, first: int = 1) -> tuple[int, ...]:
    """Check which layers of a plain transformer are meant, such as those that become less-attention layers.

    Args:
        layers (Sequence[int]): Increasing numbers.
        depth (int): Number of layers of the transformer.
        first (int): The first layer that is possible.

    Returns:
        tuple[int, ...]: The numbers.

    Raises:
        ConfigError: If one is out of its range.
    """
    numbers = is_sequence(layers) and all(is_integer(i) and i in range(first, depth) for i in layers)
    if not numbers or not _increases(layers):
        raise ConfigError(f'layers must be increasing numbers from {first} to {depth - 1}, got {layers!r}')
    return tuple(layers)
