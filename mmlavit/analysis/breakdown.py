"""Where the multiply-adds of a LaViT go, stage by stage: the paper's complexity section, measured."""

from __future__ import annotations

import re
import traceback
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from mmlavit.models.lavit import AttentionResidual, LessAttention, VanillaAttention
from mmlavit.models.layers import FeedForward, PatchEmbed, SpatialReduction
from mmlavit.models.resample import resample_tokens

from .flops import ATTENTION, PRODUCT, Operation

# In the order of the table.
ROLES = EMBEDDING, REDUCTION, PROJECTIONS, PRODUCTS, TRANSFORMS, RESAMPLING, RESIDUAL, FEED_FORWARD = (
    'patch embedding',
    'reduction of keys and values',
    'projections',
    'attention products',
    'transforms (Psi, Theta)',
    'resampling (D, U)',
    'attention residual',
    'feed-forward',
)
# What runs in modules of these classes; the innermost one counts.
_MODULES = {
    PatchEmbed: EMBEDDING,
    SpatialReduction: REDUCTION,
    VanillaAttention: PROJECTIONS,
    LessAttention: PROJECTIONS,
    AttentionResidual: RESIDUAL,
    FeedForward: FEED_FORWARD,
}
# What attention runs in these functions instead of in modules; again the innermost one counts.
_FUNCTIONS = {resample_tokens.__code__: RESAMPLING, LessAttention.transform.__code__: TRANSFORMS}


def lavit_roles(operation: Operation) -> Mapping[str, int]:
    """Find what an operation of a LaViT on one image is for.

    Args:
        operation (Operation): The operation.

    Returns:
        Mapping[str, int]: The role and all multiply-adds, or two roles that share them; nothing outside of a LaViT.
    """
    macs = operation.macs
    module = next((module for module in reversed(operation.modules) if isinstance(module, (*_MODULES,))), None)
    if module is None:
        return {}
    if module is not operation.modules[-1] or not isinstance(module, (VanillaAttention, LessAttention)):
        return {next(role for cls, role in _MODULES.items() if isinstance(module, cls)): macs}
    for frame, _ in traceback.walk_stack(None):
        if frame.f_code in _FUNCTIONS:
            return {_FUNCTIONS[frame.f_code]: macs}
    if operation.kind != PRODUCT:  # the raw weight of a linear is folded into the few keys or values
        return {PROJECTIONS: macs}
    if operation.name == ATTENTION:
        # The attention residual is part of the products: extra columns of queries, keys and values.
        products = macs * (module.q.out_features // module.heads) // operation.args[0].shape[-1]
        return {PRODUCTS: products, RESIDUAL: macs - products} if products < macs else {PRODUCTS: macs}
    return {PRODUCTS: macs}


@dataclass
class Row:
    """One row of a breakdown.

    Args:
        name (str): What was counted.
        total (int): How much.
        stages (Counter[int]): How much in each of the four stages; of what is outside of a LaViT, nothing.
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
        counts (Mapping): ``cells`` or ``elements`` of a :class:`Complexity` that was counted with
            :func:`lavit_roles`.

    Returns:
        list[Row]: Rows whose totals add up to the sum of the counts.
    """
    rows = {role: Row(role) for role in ROLES}
    for (path, role), count in counts.items():
        name = role if role in rows else f'{part_of(path)}: {role}'
        row = rows.setdefault(name, Row(name))
        row.total += count
        stage = re.match(r'(?:backbone\.)?stages\.(\d+)\.', path)
        if stage:
            row.stages[int(stage[1])] += count
    return [row for row in rows.values() if row.total]
