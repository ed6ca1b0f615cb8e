"""What is a mechanism worth to a trained model? Take it away, without training, and test again (ours)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor, nn

from mmlavit.engine.plain_model import unwrap
from mmlavit.errors import ConfigError
from mmlavit.models.arguments import resolve_layers
from mmlavit.models.factored import AnyScores
from mmlavit.models.lavit import AttentionResidual, LaViT, LessAttention, VanillaAttention, attend, transform_keys
from mmlavit.models.layout import Scores
from mmlavit.models.observation import refuse_control
from mmlavit.models.plain_vit import (
    PlainLessAttention,
    compute_scores,
    find_blocks,
    find_transformer,
    finish_attention,
)

Attention = VanillaAttention | LessAttention


@HOOKS.register_module()
class AblationHook(Hook):
    """Take something away from a LaViT, from its twin, or from a plain vision transformer, before a test.

    Args:
        what (str): A key of :data:`ABLATIONS`.
        num_va_layers (Sequence[int], optional): Of a LaViT: layers at the start of each stage that are left alone. The
            others, the later layers, are changed; in a twin these are vanilla layers.
        layers (Sequence[int], optional): Of a plain transformer: numbers of its later layers, from 0; None: those that
            have less attention.

    Raises:
        ConfigError: If there is no such ablation, the backbone is of another kind, or has nothing of what is meant.
    """

    priority = 'LOWEST'  # after EMAHook, which puts the averaged weights into place

    def __init__(
        self, what: str, num_va_layers: Sequence[int] | None = None, layers: Sequence[int] | None = None
    ) -> None:
        _require_known(what)
        self.what = what
        self.num_va_layers = num_va_layers
        self.layers = layers

    def before_test_epoch(self, runner) -> None:
        """Change the model.

        Raises:
            ConfigError: As for the class; and for 'content', if batches have one image.
        """
        require_batches(self.what, runner.test_dataloader.batch_size, len(runner.test_dataloader.dataset))
        model = unwrap(runner.model)
        ablate(model.backbone, self.what, self.num_va_layers, self.layers)


def require_batches(what: str, batch_size: int, images: int | None = None) -> None:
    """Make sure that there is something to average over.

    Args:
        what (str): As of :class:`AblationHook`.
        batch_size (int): That of the test.
        images (int, optional): Number of images of the test; None: not known yet.

    Raises:
        ConfigError: If scores are to be averaged over the images of a batch, and one has a single image.
    """
    if what == 'content' and batch_size == 1:
        raise ConfigError(
            'scores are to be averaged over the images of a batch, but test_dataloader.batch_size is 1; set it to 8 or '
            'more'
        )
    if what == 'content' and images is not None and images % batch_size == 1:
        raise ConfigError(
            f'scores are to be averaged over the images of a batch, but the last of the {images} images would be alone '
            f'in one; set test_dataloader.batch_size to another number than {batch_size}'
        )


def ablate(
    backbone: nn.Module, what: str, num_va_layers: Sequence[int] | None = None, layers: Sequence[int] | None = None
) -> None:
    """Take something away from a backbone; the arguments are those of :class:`AblationHook`.

    Raises:
        ConfigError: If there is no such ablation, the backbone is of another kind, or has nothing of what is meant.
    """
    _require_known(what)
    refuse_control(backbone, 'so nothing is taken away from it; ablate the model that it is compared with')
    if not ABLATIONS[what].remove(backbone, _later_layers(backbone, num_va_layers, layers)):
        raise ConfigError(f'this backbone has no {ABLATIONS[what].part}')


def _require_known(what: str) -> None:
    if what not in ABLATIONS:
        raise ConfigError(f'what must be one of {", ".join(ABLATIONS)}, got {what!r}')


def _later_layers(
    backbone: nn.Module, num_va_layers: Sequence[int] | None, layers: Sequence[int] | None
) -> list[nn.Module]:
    """Attention of the later layers."""
    if isinstance(backbone, LaViT):
        if num_va_layers is None:
            raise ConfigError('num_va_layers is missing: the layers of each stage that are left alone')
        # Stages after the last of out_indices are not built.
        depths = [len(stage.blocks) for stage in backbone.stages]
        numbers = num_va_layers if isinstance(num_va_layers, Sequence) else []
        fits = len(numbers) >= len(depths) and all(
            isinstance(n, int) and 1 <= n <= depth for n, depth in zip(numbers, depths, strict=False)
        )
        if not fits:
            raise ConfigError(f'num_va_layers is {num_va_layers}, expected a number from 1 to each of {depths}')
        return [block.attn for n, stage in enumerate(backbone.stages) for block in stage.blocks[num_va_layers[n] :]]
    blocks = find_blocks(find_transformer(backbone))
    if layers is None:
        return [block.attn for block in blocks if isinstance(block.attn, PlainLessAttention)]
    return [blocks[i].attn for i in resolve_layers(layers, len(blocks), first=0)]


def _remove_residual(backbone: nn.Module, later: Sequence[nn.Module]) -> int:
    return _set_to_zero([m.layer_scale for m in backbone.modules() if isinstance(m, AttentionResidual)])


def _less_attention_layers(later: Sequence[nn.Module]) -> list[LessAttention | PlainLessAttention]:
    return [m for m in later if isinstance(m, (LessAttention, PlainLessAttention))]


def _remove_transforms(backbone: nn.Module, later: Sequence[nn.Module]) -> int:
    return _remove_psi(backbone, later) + _remove_theta(backbone, later)


def _remove_psi(backbone: nn.Module, later: Sequence[nn.Module]) -> int:
    return _set_to_zero([layer.delta_psi for layer in _less_attention_layers(later)])


def _remove_theta(backbone: nn.Module, later: Sequence[nn.Module]) -> int:
    return _set_to_zero([layer.delta_theta for layer in _less_attention_layers(later)])


def _spread_in_blocks(backbone: nn.Module, later: Sequence[nn.Module]) -> int:
    layers = _less_attention_layers(later)
    for layer in layers:
        layer.transform = partial(_transform_in_blocks, layer)
    return len(layers)


def _transform_in_blocks(layer: LessAttention | PlainLessAttention, scores: AnyScores) -> Scores:
    """``Psi A Theta^T``, where a query takes over what is added to the one reference query in whose cell it lies."""
    a = transform_keys(scores.map, layer.key_mixing())  # (B, E + N, H * (E + K))
    coarse = torch.matmul(layer.delta_psi, layer.reduce_queries(a, scores.grid))
    plain = isinstance(layer, PlainLessAttention)
    extra = layer.num_extra_tokens if plain else 0
    reference = layer.reference_grid if plain else layer.query_grid
    # The number of the cell, per axis: that of the query's centre.
    rows, columns = (
        (2 * torch.arange(size, device=a.device) + 1) * cells // (2 * size)
        for size, cells in zip(scores.grid, reference, strict=True)
    )
    cells = (rows[:, None] * reference[1] + columns).flatten() + extra
    index = torch.cat([torch.arange(extra, device=a.device), cells])  # extra tokens have cells of their own
    return Scores(a + coarse[:, index], scores.heads, scores.grid)


def _set_to_zero(parameters: Sequence[nn.Parameter]) -> int:
    for parameter in parameters:
        parameter.data.zero_()
    return len(parameters)


def _forget_content(backbone: nn.Module, later: Sequence[nn.Module]) -> int:
    for attn in later:
        if isinstance(attn, LessAttention):
            attn.register_forward_hook(_attend_less_alike)
        elif isinstance(attn, PlainLessAttention):
            attn.transform = partial(_transform_alike, attn.transform)
        elif isinstance(attn, VanillaAttention):
            _replace(attn, _attend_alike)
        else:
            kept: dict[str, Tensor] = {}
            attn.qkv.register_forward_hook(partial(_keep, kept))
            attn.register_forward_hook(partial(_attend_plainly_alike, kept))
    return len(later)


def _transform_alike(transform: Callable[[AnyScores], AnyScores], scores: AnyScores) -> Scores:
    """Transform scores, and give every image their mean over the batch."""
    found = transform(scores)
    return Scores(_average_images(found.map), found.heads, found.grid)


def _attend_less_alike(attn: LessAttention, args: tuple, output: tuple) -> tuple:
    """Attend with the mean of the scores over a batch; those that it passes on stay what they are."""
    (x, _), scores = args, output[1]
    average = Scores(_average_images(scores.map), scores.heads, scores.grid)
    return attend(average, attn.v(attn.read_values(x, scores.grid)), attn.proj), scores


def _average_images(scores: Tensor) -> Tensor:
    return scores.mean(dim=0, keepdim=True).expand_as(scores)


def _attend_alike(attn: VanillaAttention, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Attend to the reduced keys with the mean of scores over a batch; later layers have no attention residual."""
    keys, _ = attn.read_keys(x, grid)  # (B, M, C)
    query, key, value = (
        t.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for t in (attn.q(x), *attn.kv(keys).chunk(2, dim=-1))
    )
    scores = torch.matmul(query * attn.scale, key.transpose(2, 3))  # (B, H, N, M)
    out = torch.matmul(_average_images(scores).softmax(dim=-1), value)  # (B, H, N, d)
    return attn.proj(out.transpose(1, 2).flatten(2))


def _keep(kept: dict[str, Tensor], module: nn.Module, args: tuple, output: Tensor) -> None:
    kept['qkv'] = output


def _attend_plainly_alike(kept: dict[str, Tensor], attn: nn.Module, args: tuple, output: Tensor) -> Tensor:
    """As :func:`_attend_alike`, for full attention of a plain transformer."""
    qkv = kept.pop('qkv')  # (B, N, 3 * C)
    scores = compute_scores(attn, qkv, lambda key: key)  # (B, H, N, N)
    value = qkv.chunk(3, dim=-1)[2].unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
    out = torch.matmul(_average_images(scores).softmax(dim=-1), value)  # (B, H, N, d)
    return finish_attention(attn, attn.proj(out.transpose(1, 2).flatten(2)))


def _make_uniform(backbone: nn.Module, later: Sequence[nn.Module]) -> int:
    for attn in later:
        if isinstance(attn, PlainLessAttention):
            attn.attend = partial(_attend_plainly, attn)
        elif isinstance(attn, Attention):
            _replace(attn, attend_uniformly)
        else:
            if not isinstance(getattr(attn, 'q_norm', None), (nn.Identity, type(None))):
                raise ConfigError('attention with a norm of queries cannot be made uniform')
            attn.qkv.register_forward_hook(_forget_queries)
    return len(later)


def _attend_plainly(attn: PlainLessAttention, x: Tensor) -> Tensor:
    """Give every token the mean of all values; the scores that are passed on stay what they are."""
    attn.pass_scores_on()
    return attn.proj(attn.v(x.mean(dim=1, keepdim=True))).expand_as(x)


def _forget_queries(qkv: nn.Module, args: tuple, output: Tensor) -> Tensor:
    """Without queries, all scores are zero, and attention is uniform."""
    query, rest = output.tensor_split([output.shape[-1] // 3], dim=-1)
    return torch.cat([torch.zeros_like(query), rest], dim=-1)


def _remove_attention(backbone: nn.Module, later: Sequence[nn.Module]) -> int:
    for attn in later:
        if isinstance(attn, Attention):
            _replace(attn, lambda attn, x, grid: torch.zeros_like(x))
        else:
            attn.register_forward_hook(lambda attn, args, output: torch.zeros_like(output))
    return len(later)


def attend_uniformly(attn: Attention, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Give every query the mean of all M reduced values.

    Args:
        attn (VanillaAttention or LessAttention): The layer whose values and projection are used.
        x (Tensor): Normalised tokens of shape (B, N, C).
        grid (tuple[int, int]): Their grid.

    Returns:
        Tensor: Tokens of shape (B, N, C).
    """
    mean = attn.reduction(x, grid).mean(dim=1, keepdim=True)  # (B, 1, C)
    value = attn.v(mean) if isinstance(attn, LessAttention) else attn.kv(mean).chunk(2, dim=-1)[1]
    return attn.proj(value).expand_as(x)


def _replace(attn: Attention, attend: Callable[[Attention, Tensor, tuple[int, int]], Tensor]) -> None:
    """Let a layer attend otherwise; the scores that it passes on stay what they are."""

    def hook(attn: Attention, args: tuple, output: tuple) -> tuple:
        x, place = args[:2]  # a grid, or scores that know it
        return attend(attn, x, getattr(place, 'grid', place)), output[1]

    attn.register_forward_hook(hook)


class Ablation(NamedTuple):
    """One part that can be taken away.

    Args:
        remove (Callable): Takes it away; returns how many layers or parameters that changed.
        part (str): What a model without it is said not to have.
        row (str): What a table calls a model that it was taken from.
    """

    remove: Callable[[nn.Module, Sequence[nn.Module]], int]
    part: str
    row: str

    @property
    def of_transforms(self) -> bool:
        """Whether only less attention has that part."""
        return self.part.startswith('transforms of')


ABLATIONS = {
    'residual': Ablation(_remove_residual, 'attention residuals', 'without attention residuals'),
    'transforms': Ablation(_remove_transforms, 'transforms of scores', 'scores of the layer before, untransformed'),
    'psi': Ablation(_remove_psi, 'transforms of queries', 'without transforms of queries'),
    'theta': Ablation(_remove_theta, 'transforms of keys', 'without transforms of keys'),
    'blocks': Ablation(_spread_in_blocks, 'transforms of queries', 'transforms of queries spread in blocks'),
    'content': Ablation(_forget_content, 'later layers', 'scores of later layers averaged over images'),
    'uniform': Ablation(_make_uniform, 'later layers', 'later layers attend to all keys alike'),
    'none': Ablation(_remove_attention, 'later layers', 'later layers without attention'),
}
"""What can be taken away, by name."""
