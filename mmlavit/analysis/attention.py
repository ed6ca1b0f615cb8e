"""How attention changes from layer to layer: the saturation that less attention starts from (paper, introduction)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmlavit.models.observation import Observed, observe_attention
from mmlavit.models.resample import Grid


class LayerAttention(NamedTuple):
    """What the attention of one layer is like, as means over images, heads and queries.

    Args:
        name (str): The layer.
        less (bool): Whether it is a less-attention layer.
        similarity (float, optional): Cosine between its attention and that of the layer before, query by query; the
            heads of both are matched so that it is largest. None where the layer before has another grid or none.
        alignment (float, optional): Linear centred kernel alignment (Kornblith et al., 2019) with the layer before:
            from 0 to 1, queries are the samples, the attention of all heads the features. Unlike the cosine it does
            not see what all queries have in common.
        distance (float): Mean distance between a query and the keys it attends to, in sides of the image; uniform
            attention of a square image has 0.52.
        entropy (float): Entropy of the attention over that of uniform attention, from 0 to 1.
        rank (float): Effective rank of the attention matrix over the number of keys, from 0 to 1: the exponential of
            the entropy of its normalised singular values (Roy and Vetterli, 2007).
    """

    name: str
    less: bool
    similarity: float | None
    alignment: float | None
    distance: float
    entropy: float
    rank: float


@torch.no_grad()
def measure_attention(backbone: nn.Module, batches: Iterable[Tensor]) -> list[LayerAttention]:
    """Measure the attention of all layers.

    Args:
        backbone (nn.Module): As for :func:`~mmlavit.models.observation.observe_attention`.
        batches (Iterable[Tensor]): Images (B, 3, H, W), as the backbone gets them.

    Returns:
        list[LayerAttention]: One for each layer, in their order.

    Raises:
        ConfigError: If it is another kind of backbone.
        ValueError: If there are no images.
    """
    sums: dict[str, list[Tensor]] = {}
    less: dict[str, bool] = {}
    before: list[Observed] = []

    def observe(now: Observed) -> None:
        now = now._replace(scores=now.scores.double().softmax(-1))
        values = _compare(before.pop(), now) if before else [torch.nan, torch.nan]
        values += [_distance(now), _entropy(now.scores), _rank(now.scores)]
        before.append(now)
        less[now.name] = now.less
        weight = now.scores.shape[0]
        values = torch.tensor([*values, 1.0], dtype=torch.float64) * weight
        sums[now.name] = sums.get(now.name, torch.zeros_like(values)) + values

    with observe_attention(backbone, observe):
        for images in batches:
            before.clear()
            backbone(images)
    if not sums:
        raise ValueError('there are no images')
    means = {name: (values[:-1] / values[-1]).tolist() for name, values in sums.items()}
    return [
        LayerAttention(name, less[name], *(None if value != value else value for value in values))
        for name, values in means.items()
    ]


def place_of(name: str) -> tuple[int, int]:
    """Find where a layer stands.

    Args:
        name (str): The layer, such as ``stages.2.blocks.1``, or ``layers.4`` of a plain transformer.

    Returns:
        tuple[int, int]: Its stage and its number there, both from 1; a plain transformer has one stage.
    """
    numbers = [int(part) + 1 for part in name.split('.') if part.isdigit()]
    return (numbers[0] if len(numbers) > 1 else 1), numbers[-1]


def choose_layers(layers: Sequence[LayerAttention], count: int) -> list[int]:
    """Choose layers of a plain transformer that may become less-attention layers: those most like the layer before.

    Args:
        layers (Sequence[LayerAttention]): All layers.
        count (int): How many.

    Returns:
        list[int]: Their numbers, increasing.
    """
    order = sorted(range(1, len(layers)), key=lambda i: -layers[i].similarity)
    return sorted(order[:count])


def choose_depths(layers: Sequence[LayerAttention], count: int) -> list[int]:
    """Choose how many layers of each stage of a LaViT stay vanilla, where the others are the last of their stage.

    One layer after the other is taken: that which is most like the layer before among the last vanilla ones.

    Args:
        layers (Sequence[LayerAttention]): All layers of a LaViT, named ``stages.S.blocks.J``.
        count (int): How many layers become less-attention layers.

    Returns:
        list[int]: Vanilla layers of each stage: ``num_va_layers``.
    """
    stages: dict[str, list[LayerAttention]] = {}
    for layer in layers:
        stages.setdefault(layer.name.split('.')[1], []).append(layer)
    vanilla = {stage: len(blocks) for stage, blocks in stages.items()}
    for _ in range(count):
        last = {stage: stages[stage][n - 1].similarity for stage, n in vanilla.items() if n > 1}
        vanilla[max(last, key=last.get)] -= 1
    return list(vanilla.values())


def _compare(before: Observed, now: Observed) -> list[float]:
    """Similarity and alignment."""
    a, b = before.scores, now.scores  # (B, H, N, K)
    if a.shape[2:] != b.shape[2:] or a.shape[1] != b.shape[1]:
        return [torch.nan, torch.nan]
    return [_matched_cosine(a, b), _alignment(a, b)]


def _matched_cosine(a: Tensor, b: Tensor) -> float:
    from scipy.optimize import linear_sum_assignment

    a, b = (x / x.norm(dim=-1, keepdim=True) for x in (a, b))
    cosines = torch.einsum('bhnk,bgnk->hg', a, b) / (a.shape[0] * a.shape[2])
    rows, columns = linear_sum_assignment(cosines.cpu().numpy(), maximize=True)
    return float(cosines[rows, columns].mean())


def _alignment(a: Tensor, b: Tensor) -> float:
    """Centred kernel alignment of features (N, H * K), the mean over images."""
    a, b = (x.transpose(1, 2).flatten(2) for x in (a, b))
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    if a.shape[2] > a.shape[1]:  # kernels of tokens are smaller then, and give the same
        a, b = (x @ x.mT for x in (a, b))
        cross, own_a, own_b = ((x * y).sum((1, 2)) for x, y in ((a, b), (a, a), (b, b)))
    else:
        cross, own_a, own_b = ((x.mT @ y).square().sum((1, 2)) for x, y in ((a, b), (a, a), (b, b)))
    return float((cross / (own_a * own_b).sqrt().clamp_min(1e-300)).mean())


def _distance(now: Observed) -> float:
    """Of queries and keys that are cells: extra tokens have no place."""
    attention = now.scores[:, :, now.extra :, now.extra :]
    attention = attention / attention.sum(-1, keepdim=True)
    queries, keys = (_centres(grid, attention) for grid in (now.grid, now.key_grid))
    return float((attention * torch.cdist(queries, keys)).sum(-1).mean())


def _centres(grid: Grid, like: Tensor) -> Tensor:
    """Centres of cells, (h * w, 2), in sides of the image."""
    axes = [(torch.arange(n, dtype=like.dtype, device=like.device) + 0.5) / n for n in grid]
    return torch.cartesian_prod(*axes)


def _entropy(attention: Tensor) -> float:
    entropy = torch.special.entr(attention).sum(-1).mean()
    return float(entropy / torch.tensor(float(attention.shape[-1])).log())


def _rank(attention: Tensor) -> float:
    values = torch.linalg.svdvals(attention)  # (B, H, min(N, K))
    shares = values / values.sum(-1, keepdim=True)
    return float(torch.special.entr(shares).sum(-1).exp().mean() / attention.shape[-1])
