"""Distances between a student and its teacher (ours)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .lavit import LaViT
from .resample import Grid


def find_distances(student: Mapping[str, Any], teacher: Mapping[str, Any], sigmoid: bool = False) -> dict[str, Tensor]:
    """Distances of everything that both have in the same shape.

    Maps are matched by their shapes. Where several have the same, as those of a plain transformer, and both models have
    as many maps, they are matched by their places.

    Args:
        student (Mapping): What was recorded of the student's forward: 'backbone' and 'neck', their maps; 'logits',
            class scores or None; 'blocks', of each block the tokens that went in, their grid (not of plain
            transformers), what its attention gave and the tokens that came out.
        teacher (Mapping): The same of the teacher.
        sigmoid (bool): As for :func:`divergence`.

    Returns:
        dict[str, Tensor]: Some of 'blocks', 'maps', 'neck' and 'logits'.
    """
    pairs = dict(
        blocks=[
            (a[-1], b[-1])
            for a, b in zip(student.get('blocks', ()), teacher.get('blocks', ()), strict=True)
            if a[-1].shape == b[-1].shape
        ],
        maps=_match_maps(student.get('backbone'), teacher.get('backbone')),
        neck=_match_maps(student.get('neck'), teacher.get('neck')),
    )
    found = {
        name: torch.stack([relative_distance(a, b) for a, b in some]).mean() for name, some in pairs.items() if some
    }
    a, b = student.get('logits'), teacher.get('logits')
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape[1] == b.shape[1]:
        found['logits'] = divergence(a, b, sigmoid)
    return found


def _match_maps(student: Any, teacher: Any) -> list[tuple[Tensor, Tensor]]:
    """Pairs of maps of the same shape."""
    student, teacher = (list(_flatten(maps)) for maps in (student, teacher))
    counts = [Counter(tuple(some.shape) for some in maps) for maps in (student, teacher)]
    pairs = [
        (a, b)
        for i, a in enumerate(student)
        for j, b in enumerate(teacher)
        if a.shape == b.shape
        and (all(count[tuple(a.shape)] == 1 for count in counts) or (i == j and len(student) == len(teacher)))
    ]
    return [(a, b) for a, b in pairs if a.dim() == 4]


def _flatten(maps: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested sequences, as transformers give that have several tokens beside their map."""
    if isinstance(maps, Tensor):
        yield maps
    elif isinstance(maps, Sequence):
        for some in maps:
            yield from _flatten(some)


def relative_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance over the teacher's variance, in float32 whatever autocast says.

    Args:
        student (Tensor): Of any shape.
        teacher (Tensor): Of the same shape.

    Returns:
        Tensor: A number; 1 for a student that gives the teacher's mean everywhere.
    """
    student, teacher = student.float(), teacher.float()
    return (student - teacher).square().mean() / teacher.var().clamp_min(1e-12)


def divergence(student: Tensor, teacher: Tensor, sigmoid: bool = False) -> Tensor:
    """Kullback-Leibler divergence of the probabilities that softmax makes of class scores.

    Args:
        student (Tensor): Scores of shape (B, classes) or (B, classes, h, w).
        teacher (Tensor): The same; h and w may differ.
        sigmoid (bool): Whether each class has a probability of its own instead, by a sigmoid, as a single class always
            has. Divergences are then summed over classes.

    Returns:
        Tensor: Mean over images and positions, in nats.
    """
    student, teacher = student.float(), teacher.float()
    if student.shape != teacher.shape:
        student = F.interpolate(student, teacher.shape[2:], mode='bilinear', align_corners=False)
    if sigmoid or student.shape[1] == 1:  # the sigmoid of a score is the softmax of it and 0
        student, teacher = (torch.stack([some, torch.zeros_like(some)]) for some in (student, teacher))
        total = F.kl_div(student.log_softmax(0), teacher.log_softmax(0), reduction='none', log_target=True).sum(0)
    else:
        total = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction='none', log_target=True)
    return total.sum(1).mean()


def attention_distance(backbone: LaViT, blocks: list[tuple[Tensor, Grid, Tensor, Tensor]]) -> Tensor:
    """Let each attention layer work on its teacher's input.

    Args:
        backbone (LaViT): The student's.
        blocks (list): Of each block of the teacher the tokens (B, N, C) that went in, their grid, what its attention
            gave, and the tokens that came out.

    Returns:
        Tensor: Distance of what attention gives, mean over the layers.
    """
    distances, scores, taught = [], None, iter(blocks)
    for stage in backbone.stages:
        residual = stage.residual(scores) if stage.residual is not None else None
        scores = None
        for block in stage.blocks:
            x, grid, wanted, _ = next(taught)
            given, scores = block.attend(x, grid, scores, residual)
            residual = None
            distances.append(relative_distance(given, wanted))
    return torch.stack(distances).mean()
