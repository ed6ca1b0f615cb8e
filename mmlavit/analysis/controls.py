"""Networks that an experiment compares less attention with (ours): does what its layers do matter at all?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmlavit.errors import ConfigError
from mmlavit.models.lavit import LaViT, LessAttention, attend
from mmlavit.models.layout import Scores
from mmlavit.models.plain_vit import PlainLessAttention, WithLessAttention, find_blocks, find_transformer
from mmlavit.models.resample import resample_tokens

from .ablation import attend_uniformly


class SharedAttention(LessAttention):
    """The scores of the layer before as they are, without transforms.

    Made from a ``LessAttention`` by changing its class, so that all settings of the backbone stay: frozen stages,
    epsilons of norms.
    """

    unused = ('delta_theta', 'delta_psi')

    def forward(self, x: Tensor, scores: Scores) -> tuple[Tensor, Scores]:
        """Attend; shapes as for ``LessAttention``."""
        return attend(scores, self.v(self.read_values(x, scores.grid)), self.proj), scores


class UniformAttention(SharedAttention):
    """The mean of all values, for every query."""

    def forward(self, x: Tensor, scores: Scores) -> tuple[Tensor, Scores]:
        """Attend; shapes as for ``LessAttention``."""
        return attend_uniformly(self, x, scores.grid), scores


class NoAttention(SharedAttention):
    """Nothing: the feed-forward is all that is left of the block."""

    unused = (*SharedAttention.unused, 'v', 'proj', 'reduction')

    def forward(self, x: Tensor, scores: Scores) -> tuple[Tensor, Scores]:
        """Give zeros; shapes as for ``LessAttention``."""
        return torch.zeros_like(x), scores

    def _load_from_state_dict(self, *args: Any) -> None:
        """Load; there are no values, so what a vanilla layer has of them stays under its own name."""
        nn.Module._load_from_state_dict(self, *args)


class FixedAttention(SharedAttention):
    """Scores that are learned, the same for all images: attention by position alone."""

    def add_parameters(self) -> None:
        """Make the scores, on the reference grids of queries and keys."""
        queries, keys = (height * width for height, width in (self.query_grid, self.reference_grid))
        self.fixed = _make_scores(queries, self.heads * keys)

    def forward(self, x: Tensor, scores: Scores) -> tuple[Tensor, Scores]:
        """Attend; shapes as for ``LessAttention``. The next layer gets what came in."""
        fixed = resample_tokens(self.fixed[None], self.query_grid, scores.grid).expand(x.shape[0], -1, -1)
        return super().forward(x, Scores(fixed, self.heads, scores.grid))[0], scores


class PlainSharedAttention(PlainLessAttention):
    """The scores of the layer before as they are, in a plain transformer."""

    unused = ('delta_theta', 'delta_psi')

    def transform(self, scores: Scores) -> Scores:
        """Give the scores back."""
        return scores


class PlainUniformAttention(PlainSharedAttention):
    """The mean of the values of all tokens, for every query, in a plain transformer."""

    def attend(self, x: Tensor) -> Tensor:
        """Attend; shapes as for ``PlainLessAttention``."""
        return self.proj(self.v(x.mean(dim=1, keepdim=True))).expand_as(x)


class PlainFixedAttention(PlainSharedAttention):
    """Scores that are learned, the same for all images, in a plain transformer."""

    def add_parameters(self) -> None:
        """Make the scores, on the reference grid of queries and keys and for the tokens beside it."""
        tokens = len(self.delta_psi)
        self.fixed = _make_scores(tokens, self.heads * tokens)

    def attend(self, x: Tensor) -> Tensor:
        """Attend; shapes as for ``PlainLessAttention``."""
        grid = self._shared.grid
        fixed = self._shared.from_reference(self.fixed[None], grid).expand(x.shape[0], -1, -1)
        values = self.v(self._shared.to_reference(x, grid))  # (B, E + K, C)
        return attend(Scores(fixed, self.heads, grid), values, self.proj)


class PlainBiasedAttention(PlainFixedAttention):
    """Full attention of a plain transformer with learned scores, the same for all images, added to its own.

    At other sizes than the transformer's own, keys and values are averaged to the reference grid, which these scores
    are for, as in less attention.
    """

    def add_parameters(self) -> None:
        """Make the learned scores, queries and keys; the latter start as those that were replaced."""
        super().add_parameters()
        self.qk = nn.Linear(self.v.in_features, 2 * self.v.out_features, bias=self.v.bias is not None)
        for name, value in self.qk.named_parameters():
            value.data.copy_(self.dropped[name])

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Load; queries and keys of a checkpoint are taken over, too."""
        for name in ('weight', 'bias'):
            value = state_dict.get(f'{prefix}qkv.{name}')
            if value is not None:
                state_dict[f'{prefix}qk.{name}'] = _queries_and_keys(value)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def attend(self, x: Tensor) -> Tensor:
        """Attend; shapes as for ``PlainLessAttention``."""
        grid = self._shared.grid
        query, key = self.qk(x).chunk(2, dim=-1)
        key, values = (self._shared.to_reference(t, grid) for t in (key, self.v(x)))  # (B, E + K, C)
        query, key = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key))  # (B, H, N, d)
        own = torch.matmul(query * query.shape[-1] ** -0.5, key.mT)  # (B, H, E + N, E + K)
        fixed = self._shared.from_reference(self.fixed[None], grid)  # (1, E + N, H * (E + K))
        return attend(Scores(own.transpose(1, 2).flatten(2) + fixed, self.heads, grid), values, self.proj)


class PlainNoAttention(PlainSharedAttention):
    """Nothing: the feed-forward is all that is left of a layer of a plain transformer.

    Values and projection stay, frozen and unused, so that checkpoints of the transformer fit.
    """

    def attend(self, x: Tensor) -> Tensor:
        """Give zeros; shapes as for ``PlainLessAttention``."""
        return torch.zeros_like(x)


CONTROLS = {
    'shared': SharedAttention,
    'fixed': FixedAttention,
    'uniform': UniformAttention,
    'none': NoAttention,
}
PLAIN_CONTROLS = {
    'shared': PlainSharedAttention,
    'fixed': PlainFixedAttention,
    'biased': PlainBiasedAttention,
    'uniform': PlainUniformAttention,
    'none': PlainNoAttention,
}


def _queries_and_keys(qkv: Tensor) -> Tensor:
    """Give of a weight or bias (3 * C, ...) what makes queries and keys, (2 * C, ...)."""
    return qkv.detach()[: 2 * len(qkv) // 3]


def _make_scores(queries: int, keys: int) -> nn.Parameter:
    """Make scores of (queries, heads * keys) that are nearly zero: attention begins as the mean of all values."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(queries, keys), std=0.02))


def _replace(attn: nn.Module, control: type[nn.Module]) -> None:
    """Make a control of a less-attention layer, without what it does not use."""
    attn.__class__ = control
    if isinstance(attn, (FixedAttention, PlainFixedAttention)):
        before = set(attn.parameters())
        attn.add_parameters()
        for parameter in set(attn.parameters()) - before:
            parameter.requires_grad_(attn.proj.weight.requires_grad)  # frozen layers stay frozen
    for name in control.unused:
        delattr(attn, name)


def _require_control(later: str, controls: Mapping[str, type[nn.Module]]) -> None:
    if later not in controls:
        raise ConfigError(f'later must be one of {", ".join(controls)}, got {later!r}')


@MODELS.register_module()
class LaViTControl(LaViT):
    """LaViT with something else in the place of less attention. For experiments.

    Args:
        *args (Any): As for ``LaViT``.
        later (str): What stands in the less-attention layers: 'shared', the scores of the layer before without
            transforms; 'fixed', learned scores, the same for all images; 'uniform', the mean of all values; 'none', no
            attention.
        **kwargs (Any): As for ``LaViT``.

    Raises:
        ConfigError: If an argument is out of its range.
    """

    def __init__(self, *args: Any, later: str, **kwargs: Any) -> None:
        _require_control(later, CONTROLS)
        super().__init__(*args, **kwargs)
        self.later = later
        blocks = [block for stage in self.stages for block in stage.blocks if isinstance(block.attn, LessAttention)]
        if not blocks:
            raise ConfigError('all layers are vanilla, so there is nothing to replace; set num_va_layers=None')
        for block in blocks:
            _replace(block.attn, CONTROLS[later])
            if later == 'none':
                block.norm1 = nn.Identity()


@MODELS.register_module()
class WithLessAttentionControl(WithLessAttention):
    """A plain vision transformer with something else in the place of less attention. For experiments.

    Args:
        *args (Any): As for ``WithLessAttention``.
        later (str): What stands in the layers; as for ``LaViTControl``. 'uniform' is the mean over all tokens, and
            'biased' full attention with learned scores, the same for all images, added to its own.
        **kwargs (Any): As for ``WithLessAttention``.

    Raises:
        ConfigError: If an argument is out of its range.
    """

    def __init__(self, *args: Any, later: str, **kwargs: Any) -> None:
        _require_control(later, PLAIN_CONTROLS)
        super().__init__(*args, **kwargs)
        self.later = later
        if not self.layers:
            raise ConfigError('layers is empty, so there is nothing to replace')
        blocks = find_blocks(find_transformer(self))
        if later == 'biased' and not isinstance(getattr(blocks[0].attn, 'q_norm', nn.Identity()), nn.Identity):
            raise ConfigError("later='biased' has no norms of queries and keys, as this transformer has (qk_norm)")
        for block in (blocks[i] for i in self.layers):
            _replace(block.attn, PLAIN_CONTROLS[later])
            del block.attn.dropped
            if later == 'none':
                norm = block.ln1 if hasattr(block, 'ln1') else block.norm1  # of mmpretrain, of timm
                for module in (norm, block.attn):
                    module.requires_grad_(False)

    def _convert(self, attn: nn.Module) -> PlainLessAttention:
        """Make a less-attention layer that knows the queries and keys it drops, which a control may keep."""
        converted = super()._convert(attn)
        converted.dropped = {name: _queries_and_keys(value) for name, value in attn.qkv.named_parameters()}
        return converted
