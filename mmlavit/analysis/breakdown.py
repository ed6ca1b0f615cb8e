"""Where the multiply-adds of a LaViT go, stage by stage: the paper's complexity section, measured."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import FrameType

from mmlavit.models.lavit import (
    AttentionResidual,
    FeedForward,
    LessAttention,
    PatchEmbed,
    SpatialReduction,
    VanillaAttention,
)
from mmlavit.models.layout import linear_each
from mmlavit.models.resample import resample_tokens

PRODUCTS, RESIDUAL = 'attention products', 'attention residual'

# What runs inside of these functions; the innermost one counts. In the order of the table.
_ROLES = {
    PatchEmbed.forward: 'patch embedding',
    SpatialReduction.forward: 'reduction of keys and values',
    VanillaAttention.forward: 'projections',
    LessAttention.forward: 'projections',
    # Its second operand is made of a projection and of the keys, or the values.
    linear_each: PRODUCTS,
    VanillaAttention._attend_all: PRODUCTS,
    LessAttention.transform: 'transforms (Psi, Theta)',
    resample_tokens: 'resampling (D, U)',
    AttentionResidual.forward: RESIDUAL,
    FeedForward.forward: 'feed-forward',
}
_ROLE_OF_CODE = {function.__code__: role for function, role in _ROLES.items()}


def lavit_roles(frame: FrameType | None, macs: int) -> Mapping[str, int]:
    """Find what an operator of a LaViT is for, by the functions that are running.

    Args:
        frame: Frame that ran the operator.
        macs: Multiply-adds of the operator.

    Returns:
        The role and all multiply-adds, or two roles that share them; nothing outside of a LaViT.
    """
    while frame is not None and frame.f_code not in _ROLE_OF_CODE:
        frame = frame.f_back
    if frame is None:
        return {}
    if frame.f_code is VanillaAttention._attend_all.__code__:
        # The attention residual is part of the products: extra columns of queries, keys and values.
        query, width = frame.f_locals['query'], frame.f_locals['head_dim']
        products = macs * width // query.shape[-1]
        return {PRODUCTS: products, RESIDUAL: macs - products} if products < macs else {PRODUCTS: macs}
    return {_ROLE_OF_CODE[frame.f_code]: macs}


@dataclass
class Row:
    """One row of a breakdown.

    Args:
        name: What was counted.
        total: How much.
        stages: How much in each of the four stages; of what is outside of a LaViT, nothing.
    """

    name: str
    total: int = 0
    stages: Counter[int] = field(default_factory=Counter)


def part_of(path: str) -> str:
    """Name the part of a whole model that a module belongs to: 'backbone', 'neck', 'roi_head.mask_head', ..."""
    names = path.split('.')
    return '.'.join(names[: 2 if names[0] == 'roi_head' else 1]) or 'other'


def break_down(counts: Mapping[tuple[str, str], int]) -> list[Row]:
    """Sum up counts: roles of a LaViT in the order of its computation, then the other parts of the model.

    Args:
        counts: ``cells`` or ``elements`` of a :class:`Complexity` that was counted with :func:`lavit_roles`.

    Returns:
        Rows whose totals add up to the sum of the counts.
    """
    rows = {role: Row(role) for role in _ROLES.values()}
    for (path, role), count in counts.items():
        name = role if role in rows else f'{part_of(path)}: {role}'
        row = rows.setdefault(name, Row(name))
        row.total += count
        stage = re.match(r'(?:backbone\.)?stages\.(\d+)\.', path)
        if stage:
            row.stages[int(stage[1])] += count
    return [row for row in rows.values() if row.total]
