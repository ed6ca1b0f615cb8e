"""From a teacher of vanilla layers to a student with less attention: copied weights, fitted transforms (ours).

A less-attention layer keeps its teacher layer's values, projection, feed-forward and norms. What it has instead of
queries and keys are the transforms Psi and Theta, and for these there is a closed form: the least squares solution of
``Psi A Theta^T = S``, S the scores that the dropped queries and keys give.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmlavit.errors import ConfigError
from mmlavit.models import LaViT
from mmlavit.models.arch import resolve_arch
from mmlavit.models.lavit import LessAttention, transform_keys
from mmlavit.models.layout import Scores
from mmlavit.models.observation import Observed, observe_attention
from mmlavit.models.plain_vit import (
    PlainLessAttention,
    WithLessAttention,
    find_blocks,
    find_transformer,
)
from mmlavit.models.resample import Grid, resample_tokens

from .pvt_v2 import convert_pvt_v2


class Fit(NamedTuple):
    """How well a less-attention layer gives its teacher's scores.

    Args:
        name (str): Name of the layer in the backbone.
        before (float): Relative squared error of the scores that come from the layer before, as they are.
        after (float): The same after heads were matched and the transforms fitted.
    """

    name: str
    before: float
    after: float


def build_twin(cfg: Mapping, teacher_state: Mapping[str, Tensor]) -> LaViT | None:
    """Build the vanilla twin of a LaViT with the weights of a teacher.

    The teacher's backbone may be a PVTv2 (names: :func:`~mmlavit.converters.pvt_v2.convert_pvt_v2`), which the twin
    then equals, or a LaViT of vanilla layers without attention residuals.

    Args:
        cfg (Mapping): Config of the student's backbone, with the teacher's ``key_reduction`` and ``out_indices``.
        teacher_state (Mapping[str, Tensor]): Weights of the whole teacher, the backbone's with ``backbone.``.

    Returns:
        LaViT, optional: The twin, frozen, in eval mode; None if the teacher's backbone is another network or has other
        sizes. What no size shows, such as the number of heads, is for :func:`gives_the_same`.
    """
    weights = {name: value for name, value in teacher_state.items() if name.startswith('backbone.')}
    try:
        converted = convert_pvt_v2(weights).backbone
    except ConfigError:
        return None
    depths = resolve_arch(cfg.get('arch', 'small')).depths
    changed = dict(num_va_layers=depths, attention_residual=False, init_cfg=None, frozen_stages=-1, with_cp=False)
    if 'later' in cfg:  # of a control, which has nothing to replace in the twin
        cfg = {name: value for name, value in cfg.items() if name != 'later'} | dict(type=LaViT)
    twin = MODELS.build({**cfg, **changed})
    state = twin.state_dict()
    if any(name not in converted or converted[name].shape != value.shape for name, value in state.items()):
        return None
    twin.load_state_dict({name: converted[name] for name in state})
    return twin.eval().requires_grad_(False)


@torch.no_grad()
def gives_the_same(twin: LaViT, teacher: nn.Module) -> bool:
    """Tell whether a twin gives the maps of the teacher's backbone, for one small image.

    Args:
        twin (LaViT): What :func:`build_twin` gave.
        teacher (nn.Module): The teacher's backbone, in eval mode.

    Returns:
        bool: Whether there are as many, and each has a relative squared distance below 1e-3.
    """
    parameter = next(teacher.parameters())
    image = torch.randn(1, twin.in_channels, 64, 96, generator=torch.Generator().manual_seed(0)).to(parameter)
    given, wanted = twin.to(parameter)(image), teacher(image)
    return len(given) == len(wanted) and all(
        a.shape == b.shape and float((a - b).square().mean() / b.var().clamp_min(1e-12)) < 1e-3
        for a, b in zip(given, wanted, strict=True)
    )


def find_twin(backbone: WithLessAttention, teacher: nn.Module) -> nn.Module | None:
    """Find the vanilla twin of a plain transformer with less attention: the teacher's backbone, if it is the same.

    Args:
        backbone (WithLessAttention): The student's backbone.
        teacher (nn.Module): The teacher's.

    Returns:
        nn.Module, optional: The teacher's; None if it has other sizes or less attention itself, or is another network.
    """
    try:
        blocks = [find_blocks(find_transformer(some)) for some in (backbone, teacher)]
    except ConfigError:
        return None
    ours, theirs = ([_teachable(block) for block in some] for some in blocks)
    for their, block in zip(theirs, blocks[0], strict=False):
        if 'attn.v.weight' in block.state_dict():  # no queries and keys, and so no norms of them
            for name in [name for name in their if name.startswith(('attn.q_norm.', 'attn.k_norm.'))]:
                del their[name]
    heads = [[getattr(block.attn, 'heads', None) or block.attn.num_heads for block in some] for some in blocks]
    outside = [find_transformer(some).state_dict() for some in (backbone, teacher)]  # norms at the end may differ
    fits = all(value.shape == outside[0][name].shape for name, value in outside[1].items() if name in outside[0])
    converted = any(isinstance(module, PlainLessAttention) for module in teacher.modules())
    return teacher if ours == theirs and heads[0] == heads[1] and fits and not converted else None


def _teachable(block: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer's parameters by their names in a vanilla layer, without those that only a student has."""
    shapes = {name: tuple(value.shape) for name, value in block.state_dict().items()}
    for name in [name for name in shapes if name.startswith(('attn.delta_', 'attn.fixed', 'attn.qk.'))]:
        del shapes[name]
    for name in ('weight', 'bias'):
        if f'attn.v.{name}' in shapes:  # where the teacher has queries and keys, too
            channels, *rest = shapes.pop(f'attn.v.{name}')
            shapes[f'attn.qkv.{name}'] = (3 * channels, *rest)
    return shapes


def copy_teacher(student: nn.Module, teacher_state: Mapping[str, Tensor], twin: nn.Module | None) -> list[str]:
    """Copy of a teacher what a student has room for, in place.

    Neck and heads are copied where name and shape agree, the backbone from the twin. The student's attention residuals
    start at zero then, since the twin has none.

    Args:
        student (nn.Module): Classifier, detector or segmentor with a LaViT or a ``WithLessAttention`` as ``backbone``.
        teacher_state (Mapping[str, Tensor]): Weights of the whole teacher.
        twin (nn.Module, optional): What :func:`build_twin` or :func:`find_twin` gave.

    Returns:
        list[str]: Names of the student's tensors that have the teacher's values now.
    """
    source = {name: value for name, value in teacher_state.items() if not name.startswith('backbone.')}
    copied = []
    if twin is not None:
        taker, giver = student.backbone, twin
        if isinstance(taker, WithLessAttention):
            taker, giver = find_transformer(taker), find_transformer(twin)
        missing = taker.load_state_dict(giver.state_dict(), strict=False).missing_keys
        place = next(name for name, module in student.named_modules() if module is taker)
        copied = [f'{place}.{name}' for name in taker.state_dict() if name not in missing]
        for stage in taker.stages if isinstance(taker, LaViT) else ():
            if stage.residual is not None:
                nn.init.zeros_(stage.residual.layer_scale)
    state = student.state_dict()
    fitting = {name: value for name, value in source.items() if name in state and state[name].shape == value.shape}
    student.load_state_dict(fitting, strict=False)
    return sorted([*fitting, *copied])


@torch.no_grad()
def fit_transforms(
    student: LaViT | WithLessAttention,
    twin: nn.Module,
    batches: Iterable[Tensor],
    rounds: int = 3,
    ridge: float = 1e-2,
) -> list[Fit]:
    """Start the transforms of less-attention layers where they give the teacher's scores best, in place.

    Layer by layer: the scores A of the layer before are known, S are the teacher's. Nothing ties head h of one layer
    to head h of the next, so heads are matched first (values and projection are permuted, which changes nothing else).
    Then Theta and Psi are solved for in turn, each in closed form. Softmax does not see a constant over keys, so A and
    S are centred there. Where the stage's grid is not the reference grid, Psi is fitted to what is left of the scores
    on the reference grid.

    Args:
        student (LaViT or WithLessAttention): Its weights are those of ``twin`` where it has them.
        twin (nn.Module): The teacher, all layers vanilla.
        batches (Iterable[Tensor]): A few batches of images (B, 3, H, W), as the teacher gets them.
        rounds (int): How often Theta and Psi are solved for.
        ridge (float): What pulls the transforms to the identity, as a share of the mean squared score.

    Returns:
        list[Fit]: One for each less-attention layer.
    """
    chains = list(_find_chains(student))
    reference = student.reference_grid if isinstance(student, WithLessAttention) else None
    needed = {first + i for first, layers in chains for i in range(len(layers) + 1)}
    scores = _collect_scores(twin, batches, reference, needed)
    fits = []
    for first, layers in chains:
        if first + len(layers) >= len(scores):  # a stage that the teacher lacks
            break
        current = scores[first]
        for i, (name, layer) in enumerate(layers, first + 1):
            before = _relative_error(current, scores[i])
            order = _match_heads(current, scores[i])
            _permute_heads(layer, order)
            wanted = [_reorder_heads(some, order) for some in scores[i]]
            _solve(layer, current, wanted, rounds, ridge)
            current = [layer.transform(some) for some in current]
            fits.append(Fit(name, before, _relative_error(current, wanted)))
    return fits


def _find_chains(student: LaViT | WithLessAttention) -> Iterator[tuple[int, list[tuple[str, nn.Module]]]]:
    """Yield runs of less-attention layers with their names, and the number of the layer before each run."""
    names = {module: name for name, module in student.named_modules()}
    stages = (
        [stage.blocks for stage in student.stages]
        if isinstance(student, LaViT)
        else [find_blocks(find_transformer(student))]
    )
    number = 0
    for blocks in stages:
        run = []
        for block in blocks:
            if isinstance(block.attn, (LessAttention, PlainLessAttention)):
                run.append((names[block], block.attn))
            elif run:
                yield number - len(run) - 1, run
                run = []
            number += 1
        if run:
            yield number - len(run) - 1, run


def _collect_scores(
    twin: nn.Module, batches: Iterable[Tensor], reference: Grid | None, needed: set[int]
) -> list[list[Scores]]:
    """Scores of all layers on the reference keys, for each batch, centred over the keys; none of layers not needed."""
    found: dict[str, list[Scores]] = {}

    def observe(layer: Observed) -> None:
        kept = found.setdefault(layer.name, [])
        if list(found).index(layer.name) not in needed:
            return
        a = layer.scores.transpose(1, 2)  # (B, E + N, H, E + K)
        if reference is not None and layer.key_grid != reference:  # keys are averaged, and scores are linear in them
            tokens = a[..., layer.extra :].permute(0, 3, 1, 2).flatten(2)  # (B, h * w, (E + N) * H)
            tokens = resample_tokens(tokens, layer.key_grid, reference).unflatten(2, a.shape[1:3]).permute(0, 2, 3, 1)
            a = torch.cat([a[..., : layer.extra], tokens], dim=-1)
        a = (a - a.mean(-1, keepdim=True)).float()
        kept.append(Scores(a.flatten(2), a.shape[2], layer.grid))

    with observe_attention(twin, observe):
        for images in batches:
            twin(images)
    return list(found.values())


def _by_heads(scores: Scores) -> Tensor:
    return scores.map.unflatten(-1, (scores.heads, -1))  # (B, N, H, K)


def _centred(scores: Scores) -> Tensor:
    a = _by_heads(scores)
    return a - a.mean(-1, keepdim=True)


def _relative_error(given: list[Scores], wanted: list[Scores]) -> float:
    """Squared distance over squared size, both without what softmax does not see."""
    distance = sum((_centred(a) - _centred(s)).square().sum() for a, s in zip(given, wanted, strict=True))
    return float(distance / sum(_centred(s).square().sum() for s in wanted))


def _match_heads(given: list[Scores], wanted: list[Scores]) -> Tensor:
    """For each head of the given scores the head of the wanted ones that is nearest to it, each taken once."""
    from scipy.optimize import linear_sum_assignment  # here, since importing mmlavit needs torch and mmengine only

    products = sum(torch.einsum('bnhk,bngk->hg', _centred(a), _centred(s)) for a, s in zip(given, wanted, strict=True))
    # ||A_h - S_g||^2 summed over all pairs differs between orders in the products alone.
    return torch.as_tensor(linear_sum_assignment(products.cpu().numpy(), maximize=True)[1])


def _permute_heads(layer: nn.Module, order: Tensor) -> None:
    """Let head h of a layer be the one that was head ``order[h]``."""
    channels = torch.arange(layer.v.out_features).unflatten(0, (layer.heads, -1))[order].flatten()
    layer.v.weight.copy_(layer.v.weight[channels])
    if layer.v.bias is not None:
        layer.v.bias.copy_(layer.v.bias[channels])
    layer.proj.weight.copy_(layer.proj.weight[:, channels])


def _reorder_heads(scores: Scores, order: Tensor) -> Scores:
    return scores._replace(map=_by_heads(scores)[:, :, order].flatten(2))


def _solve(layer: nn.Module, given: list[Scores], wanted: list[Scores], rounds: int, ridge: float) -> None:
    """Solve for delta_theta and delta_psi in turn."""
    layer.delta_theta.zero_()
    layer.delta_psi.zero_()
    keys = layer.delta_theta.shape[0]
    centring = torch.eye(keys, device=layer.delta_theta.device) - 1 / keys
    for _ in range(rounds):
        # S - Psi A = (Psi A) delta_theta^T
        outer, inner = 0.0, 0.0
        for a, s in zip(given, wanted, strict=True):
            b = _by_heads(layer.transform_queries(a)).flatten(0, 2)  # (B * N * H, K)
            rest = _by_heads(s).flatten(0, 2) - b
            outer, inner = outer + rest.mT @ b, inner + b.mT @ b
        # It may not turn a constant, which A has outside of this function, into anything else.
        layer.delta_theta.copy_(_divide(outer, inner, ridge) @ centring)
        # S - A Theta^T = U delta_psi D (A Theta^T), on the reference grid of queries
        outer, inner = 0.0, 0.0
        for a, s in zip(given, wanted, strict=True):
            b = transform_keys(a.map, layer.delta_theta)  # (B, N, H * K)
            coarse = layer.reduce_queries(b, a.grid)  # (B, n, H * K)
            rest = layer.reduce_queries(s.map - b, a.grid)
            outer = outer + torch.einsum('bnk,bmk->nm', rest, coarse)
            inner = inner + torch.einsum('bnk,bmk->nm', coarse, coarse)
        layer.delta_psi.copy_(_divide(outer, inner, ridge))


def _divide(outer: Tensor, inner: Tensor, ridge: float) -> Tensor:
    """``outer inner^-1`` with ridge, in double precision."""
    size = inner.shape[0]
    inner = inner.double()
    damping = ridge * inner.diagonal().mean() + torch.finfo(torch.float32).tiny
    solved = torch.linalg.solve(inner + damping * torch.eye(size, device=inner.device), outer.double().mT).mT
    return solved.to(outer.dtype)
