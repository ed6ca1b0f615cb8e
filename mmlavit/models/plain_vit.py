"""Less attention in plain vision transformers of other packages: ViT and DeiT of mmpretrain, timm's ViT family.

A plain transformer has one grid, tokens beside it (class, registers), and full attention in every layer. Chosen layers
become less-attention layers as in ``lavit.py``; the others, and everything around them, stay the package's own code.

Scores refer to a reference grid of keys, which K cells of the image are averaged to, besides the E extra tokens: a map
(B, N, H * (E + K)) instead of N x N per head. At the grid's own size averaging is the identity, and a less-attention
layer is the paper's ``Psi A Theta^T`` on all tokens (elsewhere ours).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmlavit.errors import ConfigError
from mmlavit.utils.allocator import keep_freed_memory

from .arguments import require_integer, resolve_layers
from .initialization import resolve_init_cfg
from .lavit import attend, transform_keys
from .layout import Scores, is_traced
from .resample import Grid, ceil_div, resample_tokens, share_traced_matrices

# What stands between the projection and the result, in this order, where a package has it.
_AFTER_PROJECTION = ('proj_drop', 'gamma1', 'out_drop')
# The parameters of an attention whose scores we know; others have biases of positions, temperatures, differences.
_PARAMETERS = {'qkv', 'proj', 'q_norm', 'k_norm', 'norm', 'gamma1'}
# What changes the meaning of scores or values, and is not there in what we support.
_OTHER = {'gate': None, 'norm': nn.Identity, 'rope': None, 'v_shortcut': False}


class _Shared:
    """What the layers of one forward pass on to each other.

    Args:
        extra (int): Tokens before those of the grid, E.
        reference (tuple[int, int]): Reference grid.
    """

    def __init__(self, extra: int, reference: Grid) -> None:
        self.extra = extra
        self.reference = reference
        self.grid: Grid = reference
        self.scores: Scores | None = None  # map (B, E + h * w, H * (E + K))
        self.running = False

    def require_forward(self) -> None:
        """Raise an error in a layer that is not called by the forward of :class:`WithLessAttention`."""
        if not self.running:
            raise ConfigError(
                'less attention in a plain transformer does not work with gradient checkpointing of its layers, which '
                'hand on scores: leave out activation_checkpointing or set_grad_checkpointing, and set '
                'no_custom_backward=True of a RevVisionTransformer. And call WithLessAttention, not the transformer '
                'in it'
            )

    def to_reference(self, x: Tensor, grid: Grid) -> Tensor:
        """Average tokens (B, E + h * w, C) of a grid to (B, E + K, C)."""
        if not torch.compiler.is_compiling() and x.shape[1] != self.extra + grid[0] * grid[1]:
            raise ConfigError(
                f'less attention needs the tokens of a whole grid, {grid[0]}x{grid[1]} and {self.extra} more, but got '
                f'{x.shape[1]}: masked patches, as in pre-training by masks (MAEViT), have no grid'
            )
        coarse = resample_tokens(x[:, self.extra :], grid, self.reference)
        return torch.cat([x[:, : self.extra], coarse], dim=1)

    def from_reference(self, x: Tensor, grid: Grid) -> Tensor:
        """Spread tokens (B, E + K, C) over (B, E + h * w, C)."""
        fine = resample_tokens(x[:, self.extra :], self.reference, grid)
        return torch.cat([x[:, : self.extra], fine], dim=1)


class PlainLessAttention(nn.Module):
    """Attention from the transformed scores of the layer before, in the place of a package's own attention.

    It has the values and the projection of that attention, and loads them from checkpoints that have its ``qkv``.

    Args:
        attn (nn.Module): The attention that it replaces.
        shared (_Shared): What the layers of a forward pass hand on.
    """

    def __init__(self, attn: nn.Module, shared: _Shared) -> None:
        super().__init__()
        dim = attn.proj.in_features
        self.heads = attn.num_heads
        self.v = nn.Linear(attn.qkv.in_features, dim, bias=attn.qkv.bias is not None)
        with torch.no_grad():
            self.v.weight.copy_(attn.qkv.weight[-dim:])
            if self.v.bias is not None:
                self.v.bias.copy_(attn.qkv.bias[-dim:])
        self.proj = attn.proj
        for name in _AFTER_PROJECTION:
            if hasattr(attn, name):
                setattr(self, name, getattr(attn, name))
        tokens = shared.extra + shared.reference[0] * shared.reference[1]
        self.delta_theta = nn.Parameter(torch.empty(tokens, tokens))
        self.delta_psi = nn.Parameter(torch.empty(tokens, tokens))
        for delta in (self.delta_theta, self.delta_psi):
            nn.init.trunc_normal_(delta, std=0.02 / tokens**0.5)
        for parameter in (*self.v.parameters(), self.delta_theta, self.delta_psi):
            parameter.requires_grad_(attn.qkv.weight.requires_grad)  # frozen layers stay frozen
        self.train(attn.training)
        self._shared = shared

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Load; queries, keys and values of a checkpoint become values."""
        for name in ('weight', 'bias'):
            value = state_dict.pop(f'{prefix}qkv.{name}', None)
            if value is not None:
                state_dict[f'{prefix}v.{name}'] = value.chunk(3)[2]
        for name in [name for name in state_dict if name.startswith((f'{prefix}q_norm.', f'{prefix}k_norm.'))]:
            state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        rel_pos_bias: Tensor | None = None,
        rope: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            x (Tensor): Normalised tokens of shape (B, N, C).
            attn_mask (Tensor, optional): As timm passes it; only None is possible.
            is_causal (bool): The same; only False is possible.
            rel_pos_bias (Tensor, optional): As BEiT's layers pass it; only None is possible.
            rope (Tensor, optional): As layers of timm's EVA pass it; only None is possible.

        Returns:
            Tensor: Tokens of shape (B, N, C).

        Raises:
            ConfigError: If tokens are masked, or positions are part of the scores.
        """
        if attn_mask is not None or is_causal:
            raise ConfigError('less attention in a plain transformer does not support attention masks; leave them out')
        if rel_pos_bias is not None or rope is not None:
            raise ConfigError(
                'less attention has no queries and keys, so relative position biases and rotary embeddings cannot be '
                'used; choose a ViT without them'
            )
        return finish_attention(self, self.attend(x))

    def attend(self, x: Tensor) -> Tensor:
        """Attend with transformed scores: tokens (B, N, C) to tokens (B, N, C), before the package's own additions."""
        self.pass_scores_on()
        values = self.v(self._shared.to_reference(x, self._shared.grid))  # (B, E + K, C)
        return attend(self._shared.scores, values, self.proj)

    def pass_scores_on(self) -> None:
        """Transform the scores of the layer before, for this layer and the next one."""
        self._shared.require_forward()
        if self._shared.scores is None:
            raise ConfigError(
                'the layer before has handed on no scores: an adapter has replaced its qkv (run the model once before '
                'it is compiled or exported), or torch.compile has divided the layer and left out the hook of its qkv '
                '(find what divides it with TORCH_LOGS=graph_breaks)'
            )
        self._shared.scores = self.transform(self._shared.scores)

    @property
    def reference_grid(self) -> Grid:
        """Reference grid of queries and keys."""
        return self._shared.reference

    @property
    def num_extra_tokens(self) -> int:
        """Tokens before those of the grid, E."""
        return self._shared.extra

    def last_scores(self) -> Tensor:
        """Give the scores of the forward pass that is under way, (B, H, E + N, E + K), until the next such layer."""
        return self._shared.scores.map.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def cell_scores(self) -> Scores:
        """Give of :meth:`last_scores` what is between cells, without the extra tokens."""
        cells = self.last_scores()[:, :, self._shared.extra :, self._shared.extra :]  # (B, H, N, K)
        return Scores(cells.transpose(1, 2).flatten(2), self.heads, self._shared.grid)

    def transform(self, scores: Scores) -> Scores:
        """``Psi A Theta^T`` for scores A, their map of shape (B, E + N, H * (E + K))."""
        return self.transform_queries(scores._replace(map=transform_keys(scores.map, self.key_mixing())))

    def key_mixing(self) -> Tensor:
        """``Theta - I`` of shape (E + K, E + K)."""
        return self.delta_theta

    def transform_queries(self, scores: Scores) -> Scores:
        """``Psi A`` for scores A."""
        coarse = torch.matmul(self.delta_psi, self.reduce_queries(scores.map, scores.grid))
        return scores._replace(map=scores.map + self._shared.from_reference(coarse, scores.grid))

    def reduce_queries(self, a: Tensor, grid: Grid) -> Tensor:
        """Average scores (B, E + N, H * (E + K)) of queries on a grid to the reference grid."""
        return self._shared.to_reference(a, grid)


@MODELS.register_module()
class WithLessAttention(BaseModule):
    """A plain vision transformer, some of whose layers are less-attention layers.

    Example:
        >>> backbone = dict(
        ...     type='WithLessAttention',
        ...     backbone=dict(type='mmpretrain.VisionTransformer', arch='base', img_size=224, out_type='featmap'),
        ...     layers=[7, 8, 9, 10, 11])

    Layers that the transformer freezes (``frozen_stages``) stay frozen, transforms included. Layers keep what they hand
    on in the model, so one model runs one forward at a time; threads need a copy each.

    Args:
        backbone (dict): Config of the transformer: ``mmpretrain.VisionTransformer`` and its like, or
            ``mmpretrain.TIMMBackbone`` with a ViT of timm. Its checkpoints load; their queries and keys of the layers
            in ``layers`` are left out.
        layers (Sequence[int]): Numbers of the layers that become less-attention layers, from 0. The first layer
            cannot: it has no layer before it.
        reference_grid (int, optional): Side of the reference grid; None: the grid of the transformer's own size, where
            nothing is averaged then.
        init_cfg (dict or list[dict], optional): mmengine initialisation.

    Raises:
        ConfigError: If the transformer is of another kind, drops attention weights in ``layers`` or patches (which has
            no counterpart here), or a number is out of its range.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        layers: Sequence[int],
        reference_grid: int | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        init_cfg, unnamed = resolve_init_cfg(init_cfg, default=[])
        if unnamed:
            print_log('WithLessAttention: init_cfg names no checkpoint, it starts as its transformer does', 'current')
        super().__init__(init_cfg)
        if not isinstance(backbone, Mapping) or 'type' not in backbone:
            raise ConfigError(f'backbone must be the config of a transformer, a dict with type, got {backbone!r}')
        if reference_grid is not None:
            require_integer('reference_grid', reference_grid)
        self.backbone = MODELS.build(backbone)
        transformer = find_transformer(self.backbone)
        blocks = find_blocks(transformer)
        self.layers = resolve_layers(layers, len(blocks))
        _require_no_drops(transformer, [blocks[i].attn for i in self.layers])
        _make_drops_constant(transformer)
        own = _own_grid(transformer)
        reference = own if reference_grid is None else (reference_grid, reference_grid)
        self._shared = _Shared(count_extra_tokens(transformer), reference)
        transformer.patch_embed.register_forward_hook(self._find_grid)
        self._sources = [blocks[i - 1].attn for i in self.layers if i - 1 not in self.layers]
        self._watch_sources()
        for i in self.layers:
            blocks[i].attn = self._convert(blocks[i].attn)

    def _convert(self, attn: nn.Module) -> PlainLessAttention:
        """Make a less-attention layer of a package's attention."""
        return PlainLessAttention(attn, self._shared)

    @property
    def reference_grid(self) -> Grid:
        """Reference grid of the keys."""
        return self._shared.reference

    @property
    def num_extra_tokens(self) -> int:
        """Tokens before those of the grid, for mmpretrain's Grad-CAM."""
        return self._shared.extra

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Give the depth of a parameter, for learning rates that decay by layers.

        Args:
            param_name (str): Its name.
            prefix (str): What it begins with in a model, such as ``backbone.``.

        Returns:
            tuple[int, int]: That of the transformer itself: the depth, and the number of depths.

        Raises:
            NotImplementedError: If the transformer has no depths, as those of timm.
        """
        if not hasattr(self.backbone, 'get_layer_depth'):
            raise NotImplementedError(f'{type(self.backbone).__name__} has no get_layer_depth')
        return self.backbone.get_layer_depth(param_name, f'{prefix}backbone.')

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Load; a checkpoint of the transformer alone has its names without this wrapper's ``backbone.``."""
        inner = f'{prefix}backbone.'
        for name in [name for name in state_dict if name.startswith(prefix) and not name.startswith(inner)]:
            state_dict[inner + name.removeprefix(prefix)] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        """Run the transformer: images (B, 3, H, W) to what it returns. Masked patches, as of MaskFeat, have no grid."""
        if mask is not None:
            raise ConfigError('less attention needs the tokens of a whole grid: masked pre-training is not possible')
        if x.device.type == 'cpu' and not is_traced():
            keep_freed_memory()
        share_traced_matrices(True)
        if not torch.compiler.is_compiling():
            self._watch_sources()
        self._shared.running = True
        try:
            return self.backbone(x)
        finally:
            share_traced_matrices(False)
            self._shared.running = False
            self._shared.scores = None

    def _watch_sources(self) -> None:
        """Have the layers whose scores are handed on record them, also where an adapter has replaced their linear."""
        for attn in self._sources:
            hooks = attn.qkv._forward_hooks.values()
            if not any(isinstance(hook, partial) and hook.func is _record for hook in hooks):
                # No closure: in a copy of the model, as EMA and export make it, hooks must be about the copy.
                attn.qkv.register_forward_hook(partial(_record, attn, self._shared))

    def _find_grid(self, patch_embed: nn.Module, args: tuple, output: Any) -> None:
        """Read from the patch embedding into how many cells the image is divided."""
        self._shared.grid = grid_of(patch_embed, args[0].shape[-2:], output)


def find_transformer(backbone: nn.Module) -> nn.Module:
    """Find the plain transformer in a backbone that may be a wrapper."""
    backbone = backbone.backbone if isinstance(backbone, WithLessAttention) else backbone
    backbone = getattr(backbone, 'timm_model', backbone)
    # timm's features_only=True puts this around a transformer, whose layers it runs.
    return backbone.model if type(backbone).__name__ == 'FeatureGetterNet' else backbone


def find_blocks(transformer: nn.Module) -> Sequence[nn.Module]:
    """Find the layers of a plain transformer.

    Args:
        transformer (nn.Module): Of mmpretrain or timm.

    Returns:
        Sequence[nn.Module]: Layers with ``attn``: a :class:`PlainLessAttention`, or with the linears ``attn.qkv`` and
        ``attn.proj``.

    Raises:
        ConfigError: If it is of another kind; the message says why that cannot have less-attention layers.
    """
    blocks = getattr(transformer, 'layers', None) or getattr(transformer, 'blocks', None)
    name = type(transformer).__name__
    if not isinstance(blocks, (nn.ModuleList, nn.Sequential)) or not hasattr(transformer, 'patch_embed'):
        raise ConfigError(
            f'{name} is no plain vision transformer, with patch_embed and a list of layers. A PVTv2 or MiT becomes a '
            "LaViT of arch='pvt_v2_b2' or 'mit_b2'; windows that shift from layer to layer (Swin) cannot reuse scores"
        )
    if getattr(transformer, 'rope', None) is not None:
        raise ConfigError(f'{name} has rotary embeddings, which belong to queries and keys; choose one without')
    for bias in ('shared_rel_pos', 'rel_pos_bias'):
        if getattr(transformer, bias, None) is not None:
            raise ConfigError(f'{name} has {bias}, biases of positions that all layers share; choose one without')
    for block in blocks:
        attn = getattr(block, 'attn', None)
        if isinstance(attn, PlainLessAttention):
            continue
        if not isinstance(getattr(attn, 'qkv', None), nn.Linear) or not isinstance(attn.proj, nn.Linear):
            raise ConfigError(
                f'{name} has layers whose attention has no linears qkv and proj, from which less attention takes its '
                'values'
            )
        parts = (parameter.partition('.')[0] for parameter, _ in attn.named_parameters())
        odd = list(dict.fromkeys(part for part in parts if part not in _PARAMETERS))
        odd += [key for key, plain in _OTHER.items() if hasattr(attn, key) and not _is_plain(getattr(attn, key), plain)]
        if getattr(attn, 'attn_dim', attn.proj.in_features) != attn.proj.in_features:
            odd.append('attn_dim')
        if odd:
            raise ConfigError(f'attention of {name} has {", ".join(odd)}, which less attention cannot take over')
    if not hasattr(transformer, 'num_extra_tokens') and not hasattr(transformer, 'num_prefix_tokens'):
        raise ConfigError(f'{name} does not say how many tokens stand before those of the grid (num_extra_tokens)')
    return blocks


def _require_no_drops(transformer: nn.Module, attentions: Sequence[nn.Module]) -> None:
    """Refuse what would be left out of less-attention layers without a word, or change their grid."""
    name = type(transformer).__name__
    for attn in attentions:
        drop = getattr(attn, 'attn_drop', 0.0)  # a number in mmpretrain, a module in timm
        if getattr(drop, 'p', drop if isinstance(drop, float) else 0.0) > 0:
            raise ConfigError(
                f'{name} drops attention weights (attn_drop_rate), which less attention has no counterpart of; set it '
                'to 0, for its twin as well'
            )
    if not isinstance(getattr(transformer, 'patch_drop', nn.Identity()), nn.Identity):
        raise ConfigError(f'{name} drops patches (patch_drop_rate), so its tokens have no grid; set it to 0')


def _make_drops_constant(transformer: nn.Module) -> None:
    """Make numbers of what mmpretrain leaves as numpy's.

    torch.compile takes those for tensors and divides the graph where they are compared. The parts of all layers are
    compiled once then, by the first, without the hook of a later one.
    """
    for module in transformer.modules():
        if isinstance(getattr(module, 'drop_prob', None), np.floating):
            module.drop_prob = float(module.drop_prob)


def _is_plain(value: Any, plain: Any) -> bool:
    return isinstance(value, plain) if isinstance(plain, type) else value is plain


def _record(attn: nn.Module, shared: _Shared, module: nn.Module, args: tuple, qkv: Tensor) -> None:
    """As a hook of ``attn.qkv``, leave the layer's scores on the reference keys to the next layer."""
    if module is not attn.qkv:  # an adapter calls it
        return
    shared.require_forward()
    scores = compute_scores(attn, qkv, partial(shared.to_reference, grid=shared.grid))  # (B, H, E + N, E + K)
    shared.scores = Scores(scores.transpose(1, 2).flatten(2), attn.num_heads, shared.grid)


def compute_scores(attn: nn.Module, qkv: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """Compute the scores of a package's own attention.

    Args:
        attn (nn.Module): The attention.
        qkv (Tensor): What its ``qkv`` gave, (B, N, 3 * C).
        reduce (Callable): From keys (B, N, C) to those that are wanted, (B, M, C).

    Returns:
        Tensor: Scores before softmax, (B, H, N, M).
    """
    query, key, _ = qkv.unflatten(-1, (3, attn.num_heads, -1)).unbind(2)  # (B, N, H, d)
    query, key = (getattr(attn, f'{name}_norm', nn.Identity())(t) for name, t in (('q', query), ('k', key)))
    key = reduce(key.flatten(2)).unflatten(-1, (attn.num_heads, -1))  # (B, M, H, d)
    return torch.matmul(query.transpose(1, 2) * query.shape[-1] ** -0.5, key.permute(0, 2, 3, 1))


def finish_attention(attn: nn.Module, x: Tensor) -> Tensor:
    """Do to projected tokens (B, N, C) what a package's own attention does after its projection."""
    for name in _AFTER_PROJECTION:
        if hasattr(attn, name):
            x = getattr(attn, name)(x)
    return x


def count_extra_tokens(transformer: nn.Module) -> int:
    """Count the tokens before those of the grid: class token, registers."""
    extra = getattr(transformer, 'num_extra_tokens', None)
    return int(transformer.num_prefix_tokens if extra is None else extra)


def _own_grid(transformer: nn.Module) -> Grid:
    """Cells at the size that the position embedding is for."""
    grid = getattr(transformer, 'patch_resolution', None) or transformer.patch_embed.grid_size
    return int(grid[0]), int(grid[1])


def grid_of(patch_embed: nn.Module, size: Sequence[int], output: Any) -> Grid:
    """Give the cells of an image of that size; mmpretrain's patch embedding tells, timm's does not."""
    if isinstance(output, tuple):
        return output[1]
    if hasattr(patch_embed, 'backbone'):  # a hybrid's, whose patches are of a network's map
        return tuple(patch_embed.dynamic_feat_size(size))
    patch = patch_embed.patch_size
    if getattr(patch_embed, 'dynamic_img_pad', False):
        return ceil_div(size[0], patch[0]), ceil_div(size[1], patch[1])
    return size[0] // patch[0], size[1] // patch[1]
