"""LaViT: the Less-Attention Vision Transformer as a dense-prediction backbone.

Paper: "You Only Need Less Attention at Each Stage in Vision Transformers", Zhang, Liu, Lin, He, CVPR 2024,
https://arxiv.org/abs/2406.00427. No official code or weights exist; this is an independent implementation.

Differs from the paper in (each marked "ours" where it stands):

* Keys and values come from a spatially reduced map, on the stride-32 grid in every stage: with all N tokens as keys
  the published multiply-adds cannot be met (N = 3136 in stage 1 at 224 px).
* Stored scores always refer to a small reference key grid (7x7), and the learned transforms to reference grids, with
  fixed resampling in between: the paper's N x N transforms only exist at one image size.
* The attention residual convolves the grid of queries, for the same reason.
* Position information comes from a depthwise convolution in the feed-forward; the class token is left to the head.

Shapes: B images, N = h * w tokens of the stage, C channels, H heads, d = C / H channels per head, K reference keys,
M reduced keys. Scores of all heads lie side by side, (B, N, H * K): a feature map with H * K channels at the stage's
resolution. Nothing of N x M is ever kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmlavit.errors import ConfigError

from .arch import STRIDES, resolve_arch, resolve_num_va_layers
from .layout import is_plain_eager, linear, linear_each, to_map, to_tokens
from .resample import Grid, resample_tokens

ScoreObserver = Callable[[Tensor, int, Grid, Grid, Grid], None]
"""Called with (scores, heads, query grid, key grid, reference key grid) of every less-attention layer in a forward."""

DEFAULT_INIT = [
    dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
    # At std 0.02 a narrow model's GELU sees values near zero, where it is linear, and training from scratch stalls.
    dict(type='Kaiming', layer='Expansion', mode='fan_in', nonlinearity='linear', bias=0.0),
    # fan_in is one kernel for a depthwise convolution, so the same rule fits dense and depthwise ones.
    dict(type='Kaiming', layer='Conv2d', mode='fan_in', nonlinearity='relu', bias=0.0),
    dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
]


class DropPath(nn.Module):
    """Drop the residual branch of whole images during training (stochastic depth).

    Args:
        rate: Probability of a drop, in [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Scale kept images by 1 / (1 - rate); x of shape (B, N, C)."""
        if self.rate == 0 or not self.training:
            return x
        keep = 1 - self.rate
        return x * x.new_empty(x.shape[0], 1, 1).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        """Show the rate when the module is printed."""
        return f'rate={self.rate}'


class PatchEmbed(nn.Module):
    """Downsample a map by a strided convolution, then LayerNorm over channels (paper, "Downsampling Operation").

    Args:
        in_channels: Channels of the input.
        dim: Channels of the tokens.
        kernel: Kernel size; equal to the stride in the paper, larger and padded by half in PVTv2.
        stride: Stride.
        eps: Epsilon of the LayerNorm.
    """

    def __init__(self, in_channels: int, dim: int, kernel: int, stride: int, eps: float) -> None:
        super().__init__()
        padding = kernel // 2 if kernel > stride else 0
        self.proj = nn.Conv2d(in_channels, dim, kernel, stride, padding)
        self.norm = nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Embed x of shape (B, in_channels, H, W) as tokens (B, N, dim); return them and their grid."""
        x = self.proj(x)
        return self.norm(to_tokens(x)), (x.shape[2], x.shape[3])


class Expansion(nn.Linear):
    """First linear of a feed-forward; a class of its own so that ``init_cfg`` can name it."""


class FeedForward(nn.Module):
    """Two linears with a 3x3 depthwise convolution between them (ours, as in PVTv2): position at any image size.

    Args:
        dim: Channels of the tokens.
        hidden: Channels between the linears.
    """

    # Inference on the CPU: bytes of the hidden map at a time. The whole map, of a batch or at detection sizes, is
    # larger than the caches, and than what the allocator keeps: every use would fault its pages in anew.
    strip_bytes = 4 << 20

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Expansion(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Map tokens x of shape (B, N, C), N = h * w of the grid, to (B, N, C)."""
        if torch.is_grad_enabled() or x.device.type != 'cpu' or not is_plain_eager():
            return self._forward_rows(x, grid, 0, grid[0])
        batch, height, out = x.shape[0], grid[0], torch.empty_like(x)
        row_bytes = grid[1] * self.fc1.out_features * x.element_size()
        images = max(1, self.strip_bytes // (row_bytes * height))
        rows = min(height, max(8, self.strip_bytes // row_bytes))  # below 8, the rows computed twice would cost more
        for image in range(0, batch, images):
            for top in range(0, height, rows):
                bottom = min(top + rows, height)
                part = self._forward_rows(x[image : image + images], grid, top, bottom)
                out[image : image + images, top * grid[1] : bottom * grid[1]] = part
        return out

    def _forward_rows(self, x: Tensor, grid: Grid, top: int, bottom: int) -> Tensor:
        """Rows top to bottom (excluded) of the result: (B, rows * w, C)."""
        # The kernel sees one row more on either side; what its padding gives there is cut off again.
        first, last = max(top - 1, 0), min(bottom + 1, grid[0])
        x = linear(x[:, first * grid[1] : last * grid[1]], self.fc1.weight, self.fc1.bias)
        x = self.dwconv(to_map(x, (last - first, grid[1])))[:, :, top - first : bottom - first]
        return linear(F.gelu(to_tokens(x)), self.fc2.weight, self.fc2.bias)


class SpatialReduction(nn.Module):
    """Reduce the map that keys and values are made of to stride 32 (ours).

    Args:
        dim: Channels of the tokens.
        ratio: Kernel and stride of the convolution; at 1 there is neither convolution nor norm.
        eps: Epsilon of the LayerNorm.
    """

    def __init__(self, dim: int, ratio: int, eps: float) -> None:
        super().__init__()
        self.ratio = ratio
        if ratio > 1:
            self.conv = nn.Conv2d(dim, dim, ratio, ratio)
            self.norm = nn.LayerNorm(dim, eps=eps)

    def reduced_grid(self, grid: Grid) -> Grid:
        """Grid after the reduction."""
        return grid[0] // self.ratio, grid[1] // self.ratio

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Reduce tokens x of shape (B, N, C) to (B, M, C), M = N / ratio^2."""
        if self.ratio == 1:
            return x
        return self.norm(to_tokens(self.conv(to_map(x, grid))))


def attend(scores: Tensor, values: Tensor, proj: nn.Linear, heads: int) -> Tensor:
    """Softmax over the reference keys, weighted sum of values, output projection.

    ``softmax(A_h) V_h W_h`` summed over heads is one matrix product with ``V_h W_h`` stacked over (head, key): with K
    keys that is cheaper than projecting N tokens, and scores and output stay in token layout without a transpose.

    Args:
        scores: Pre-softmax scores of shape (B, N, H * K).
        values: Values of shape (B, K, C).
        proj: Output projection, C to C.
        heads: Number of heads H.

    Returns:
        Tokens of shape (B, N, C).
    """
    probs = scores.unflatten(-1, (heads, -1)).softmax(dim=-1).flatten(2)  # (B, N, H * K)
    values = values.unflatten(-1, (heads, -1)).permute(0, 2, 3, 1)  # (B, H, d, K)
    weight = proj.weight.unflatten(1, (heads, -1)).transpose(0, 1)  # (H, C, d)
    projected = torch.matmul(weight, values).transpose(1, 2).flatten(2)  # (B, C, H * K)
    return linear_each(probs, projected, proj.bias.expand(probs.shape[0], -1))


class VanillaAttention(nn.Module):
    """Multi-head attention whose scores may be kept for the less-attention layers (paper, VA layer).

    ``softmax(Q K^T / sqrt(d) + E) V`` on all M reduced keys; E is the attention residual from the previous stage.

    Args:
        dim: Channels C.
        heads: Number of heads H.
        ratio: Spatial reduction of keys and values.
        reference_grid: Grid of the K reference keys.
        pool: Whether keys and values are averaged to the reference grid, which makes the layer linear in pixels
            (``key_reduction='pool'``, ours).
        keep_scores: Whether to return the scores on the reference keys.
        eps: Epsilon of the LayerNorm of the reduction.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        ratio: int,
        reference_grid: Grid,
        pool: bool,
        keep_scores: bool,
        eps: float,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.reference_grid = reference_grid
        self.pool = pool
        self.keep_scores = keep_scores
        self.scale = (dim // heads) ** -0.5
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.reduction = SpatialReduction(dim, ratio, eps)

    def forward(self, x: Tensor, grid: Grid, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            x: Normalised tokens of shape (B, N, C).
            grid: Grid of the tokens.
            residual: Attention residual E of shape (B, N, H * K), or None.

        Returns:
            Tokens (B, N, C), and the scores ``Q (D K)^T / sqrt(d) + E`` of shape (B, N, H * K), D the averaging of
            keys to their reference grid, or None if they are not kept.
        """
        keys = self.reduction(x, grid)  # (B, M, C)
        key_grid = self.reduction.reduced_grid(grid)
        if self.pool:
            keys = resample_tokens(keys, key_grid, self.reference_grid)
            key_grid = self.reference_grid
        key, value = linear(keys, self.kv.weight, self.kv.bias).chunk(2, dim=-1)  # (B, M, C) each

        if key_grid == self.reference_grid:
            scores = self._reference_scores(x, key, residual)
            return attend(scores, value, self.proj, self.heads), scores if self.keep_scores else None

        query = linear(x, self.q.weight, self.q.bias)
        out = self._attend_all(query, key, value, key_grid, residual)
        out = linear(out, self.proj.weight, self.proj.bias)
        if not self.keep_scores:
            return out, None
        key = resample_tokens(key, key_grid, self.reference_grid)  # (B, K, C)
        return out, self._reference_scores(x, key, residual)

    def _reference_scores(self, x: Tensor, key: Tensor, residual: Tensor | None) -> Tensor:
        """Scores of tokens x (B, N, C) on the reference keys (B, K, C): (B, N, H * K).

        ``Q_h K_h^T = x (W_h^T K_h^T) + b_h K_h^T``: folding the query projection into the few keys costs less than
        projecting N tokens, and the scores of all heads come out side by side.
        """
        key = key.unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1) * self.scale  # (B, H, d, K)
        weight = self.q.weight.unflatten(0, (self.heads, -1))  # (H, d, C)
        folded = torch.matmul(key.transpose(2, 3), weight).flatten(1, 2)  # (B, H * K, C)
        bias = (self.q.bias.view(self.heads, -1, 1) * key).sum(dim=2).flatten(1)  # (B, H * K)
        scores = linear_each(x, folded, bias)
        return scores if residual is None else scores + residual

    def _attend_all(self, query: Tensor, key: Tensor, value: Tensor, key_grid: Grid, residual: Tensor | None) -> Tensor:
        """Fused attention of queries (B, N, C) on all M keys and values (B, M, C): (B, N, C).

        The residual on M keys is ``E U^T``, U (M, K) the resampling from the reference keys. It is not built: E
        joins the queries as K extra columns and U the keys, so that the fused kernel adds the two products.
        """
        query, key, value = (t.unflatten(-1, (self.heads, -1)) for t in (query, key, value))  # (B, N or M, H, d)
        head_dim, scale = query.shape[-1], self.scale
        if residual is not None:
            residual = residual.unflatten(-1, (self.heads, -1))  # (B, N, H, K)
            columns = residual.shape[-1]
            identity = torch.eye(columns, device=key.device, dtype=key.dtype)
            up = resample_tokens(identity[None], self.reference_grid, key_grid)[0]  # (M, K)
            up = up.to(key.dtype)[:, None].expand(*key.shape[:3], columns)  # (B, M, H, K)
            # Fused kernels want one width, a multiple of eight, for queries, keys and values.
            padding = -(head_dim + columns) % 8
            query = F.pad(torch.cat([query * scale, residual.to(query.dtype)], dim=-1), (0, padding))
            key = F.pad(torch.cat([key, up], dim=-1), (0, padding))
            value = F.pad(value, (0, columns + padding))
            scale = 1.0
        out = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (query, key, value)), scale=scale)
        return out[..., :head_dim].transpose(1, 2).flatten(2)


class LessAttention(nn.Module):
    """Attention from transformed scores of the previous layer: no queries, no keys (paper, LA layer).

    ``A_l = Psi (Theta A_{l-1}^T)^T = Psi A_{l-1} Theta^T`` and ``softmax(A_l) V``, one Psi and Theta for all heads.

    ``delta_theta`` is K x K and exact at any image size. ``delta_psi`` lives on the reference query grid, and
    ``Psi = I + U delta_psi D`` (ours): at the architecture's own size the paper's free matrix (where the reference
    grid is the stage's), elsewhere the same weights on averaged queries, while fine detail passes through I.

    Args:
        dim: Channels C.
        heads: Number of heads H.
        ratio: Spatial reduction of the values.
        reference_grid: Grid of the K reference keys.
        query_grid: Reference grid of the queries.
        eps: Epsilon of the LayerNorm of the reduction.
    """

    def __init__(self, dim: int, heads: int, ratio: int, reference_grid: Grid, query_grid: Grid, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.reference_grid = reference_grid
        self.query_grid = query_grid
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.reduction = SpatialReduction(dim, ratio, eps)
        # Plain parameters, so that no initialiser of linears touches them: a layer begins by (almost) reusing the
        # previous attention.
        keys, queries = reference_grid[0] * reference_grid[1], query_grid[0] * query_grid[1]
        self.delta_theta = nn.Parameter(torch.empty(keys, keys))
        self.delta_psi = nn.Parameter(torch.empty(queries, queries))
        for delta in (self.delta_theta, self.delta_psi):
            nn.init.trunc_normal_(delta, std=0.02 / delta.shape[0] ** 0.5)

    def forward(self, x: Tensor, grid: Grid, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Attend with transformed scores.

        Args:
            x: Normalised tokens of shape (B, N, C).
            grid: Grid of the tokens.
            scores: Pre-softmax scores of the previous layer, (B, N, H * K).

        Returns:
            Tokens (B, N, C) and this layer's scores (B, N, H * K).
        """
        values = self.reduction(x, grid)  # (B, M, C)
        values = resample_tokens(values, self.reduction.reduced_grid(grid), self.reference_grid)
        scores = self.transform(scores, grid)
        return attend(scores, self.v(values), self.proj, self.heads), scores

    def transform(self, scores: Tensor, grid: Grid) -> Tensor:
        """``Psi A Theta^T`` for scores A of shape (B, N, H * K) on the given query grid."""
        theta = torch.eye(self.delta_theta.shape[0], device=scores.device) + self.delta_theta
        scores = linear(scores.reshape(scores.shape[0], -1, theta.shape[0]), theta, None).view_as(scores)
        coarse = resample_tokens(scores, grid, self.query_grid)  # (B, n, H * K)
        return scores + resample_tokens(torch.matmul(self.delta_psi, coarse), self.query_grid, grid)


class AttentionResidual(nn.Module):
    """One stage's scores as a residual of the next stage's (paper, "Residual-based Attention Downsampling").

    ``E = LS(Conv1x1(Norm(DWConv(A))))`` with heads as channels. The depthwise convolution (kernel and stride 2) runs
    over the grid of queries; the reference keys are the same in both stages. The norm is a BatchNorm over heads that
    is not affine, and no convolution has a bias: a constant shift of scores is invisible to softmax (all ours).

    Args:
        in_heads: Heads of the stage that the scores come from.
        out_heads: Heads of the stage that they go to.
        layer_scale_init: Initial LayerScale factor, one per head.
    """

    def __init__(self, in_heads: int, out_heads: int, layer_scale_init: float) -> None:
        super().__init__()
        self.in_heads = in_heads
        # Plain parameters, as in LessAttention: the kernel starts as an average.
        self.dwconv = nn.Parameter(torch.full((in_heads, 1, 2, 2), 0.25))
        self.norm = nn.BatchNorm1d(in_heads, affine=False)
        self.conv1x1 = nn.Parameter(torch.empty(out_heads, in_heads))
        nn.init.trunc_normal_(self.conv1x1, std=in_heads**-0.5)
        self.layer_scale = nn.Parameter(torch.full((out_heads,), float(layer_scale_init)))

    def forward(self, scores: Tensor, grid: Grid) -> Tensor:
        """Turn scores (B, N, in_heads * K) on the grid into E of shape (B, N / 4, out_heads * K)."""
        keys = scores.shape[-1] // self.in_heads
        kernel = self.dwconv.repeat_interleave(keys, dim=0)  # (in_heads * K, 1, 2, 2)
        x = F.conv2d(to_map(scores, grid), kernel, stride=2, groups=kernel.shape[0])
        x = to_tokens(x)  # (B, N / 4, in_heads * K)
        batch = x.shape[0]
        x = self.norm(x.reshape(-1, self.in_heads, keys))  # (B * N / 4, in_heads, K)
        mix = self.layer_scale[:, None] * self.conv1x1  # (out_heads, in_heads)
        return torch.matmul(mix, x).view(batch, -1, mix.shape[0] * keys)


class Block(nn.Module):
    """Pre-norm transformer block: attention, then feed-forward, each with drop path.

    Args:
        dim: Channels C.
        attn: Vanilla or less attention; both take and return (tokens, scores).
        mlp_ratio: Hidden channels of the feed-forward over C.
        drop_path: Drop path rate.
        eps: Epsilon of the LayerNorms.
    """

    def __init__(self, dim: int, attn: nn.Module, mlp_ratio: float, drop_path: float, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = FeedForward(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, grid: Grid, scores: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Run the block.

        Args:
            x: Tokens of shape (B, N, C).
            grid: Grid of the tokens.
            scores: (B, N, H * K) or None: for a vanilla layer the attention residual, for a less-attention layer the
                scores of the layer before.

        Returns:
            Tokens (B, N, C) and the scores that the next layer takes, or None.
        """
        out, scores = self.attn(self.norm1(x), grid, scores)
        x = x + self.drop_path(out)
        return x + self.drop_path(self.mlp(self.norm2(x), grid)), scores


class Stage(nn.Module):
    """Patch embedding, attention residual from the previous stage, blocks, LayerNorm.

    Args:
        patch_embed: Patch embedding.
        residual: Attention residual, or None.
        blocks: Blocks; less-attention blocks come last.
        norm: Norm of the output.
        with_cp: Whether to checkpoint the blocks.
    """

    def __init__(
        self,
        patch_embed: PatchEmbed,
        residual: AttentionResidual | None,
        blocks: Sequence[Block],
        norm: nn.LayerNorm,
        with_cp: bool,
    ) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.residual = residual
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.with_cp = with_cp

    def forward(
        self, x: Tensor, scores: Tensor | None, grid: Grid | None, observer: ScoreObserver | None
    ) -> tuple[Tensor, Tensor | None, Grid]:
        """Run the stage.

        Args:
            x: Map of shape (B, C_in, H, W).
            scores: Last scores of the previous stage, (B, N_prev, H_prev * K), or None.
            grid: Grid of the previous stage's tokens, or None.
            observer: Called with the scores of every less-attention layer, or None.

        Returns:
            Normalised map (B, C, h, w), channels-last in memory; last scores (B, N, H * K) or None; grid.
        """
        # Outside the checkpoints: recomputing a BatchNorm would count its batch statistics twice.
        scores = self.residual(scores, grid) if self.residual is not None else None
        x, grid = self.patch_embed(x)
        for block in self.blocks:
            if self.with_cp and torch.is_grad_enabled():
                x, scores = checkpoint(block, x, grid, scores, use_reentrant=False)
            else:
                x, scores = block(x, grid, scores)
            if observer is not None and isinstance(block.attn, LessAttention):
                attn = block.attn
                observer(scores, attn.heads, grid, attn.reduction.reduced_grid(grid), attn.reference_grid)
        return to_map(self.norm(x), grid), scores, grid


@MODELS.register_module()
class LaViT(BaseModule):
    """Less-Attention Vision Transformer with feature-pyramid outputs at strides 4, 8, 16, 32.

    Example:
        >>> import torch
        >>> from mmlavit import LaViT
        >>> [tuple(f.shape) for f in LaViT('tiny')(torch.rand(1, 3, 97, 161))]
        [(1, 64, 25, 41), (1, 128, 13, 21), (1, 256, 7, 11), (1, 512, 4, 6)]

    Args:
        arch: 'nano', 'tiny', 'small', 'base' (or the first letter), or a dict; see :mod:`mmlavit.models.arch`.
        in_channels: Channels of the input image.
        num_va_layers: Vanilla layers per stage, an int for all stages or four; None takes the architecture's. With
            ``depths`` and ``attention_residual=False`` the model is the plain pyramid transformer.
        attention_residual: Whether scores of a stage enter the first layer of the next one.
        key_reduction: 'conv': vanilla layers read all keys on the stride-32 grid. 'pool' (ours): they read the
            reference keys, averaged from those, and the backbone is linear in pixels; the same weights, and the same
            function at the architecture's own size (224 px; nano: 128 px).
        drop_path_rate: Drop path rate of the last block; it grows linearly from 0.
        layer_scale_init: Initial LayerScale factor of the attention residuals.
        out_indices: Stages whose maps are returned, increasing. Stages after the last are not built.
        frozen_stages: -1: nothing is frozen. 0: the first patch embedding. k: also stages 1 to k, whole. Frozen parts
            get no gradient and stay in eval mode.
        norm_eval: Whether the BatchNorms of the attention residuals keep their running statistics in training.
        with_cp: Whether to recompute blocks in the backward pass to save memory.
        init_cfg: mmengine initialisation; None: truncated normal linears, Kaiming convolutions. ``dict(
            type='Pretrained', checkpoint=FILE, prefix='backbone.')`` loads a checkpoint on top of that; with
            ``checkpoint=None`` the backbone starts from scratch and says so in one logged line.

    Raises:
        ConfigError: If an argument is out of its range; the message names it.
    """

    def __init__(
        self,
        arch: str | dict = 'small',
        *,
        in_channels: int = 3,
        num_va_layers: int | Sequence[int] | None = None,
        attention_residual: bool = True,
        key_reduction: str = 'conv',
        drop_path_rate: float = 0.1,
        layer_scale_init: float = 0.1,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        init_cfg, self._from_scratch = _resolve_init_cfg(init_cfg)
        super().__init__(init_cfg)
        arch = resolve_arch(arch)
        num_va_layers = resolve_num_va_layers(num_va_layers, arch)
        if key_reduction not in ('conv', 'pool'):
            raise ConfigError(f"key_reduction must be 'conv' or 'pool', got {key_reduction!r}")
        out_indices = tuple(out_indices)
        if not out_indices or any(i not in range(4) for i in out_indices) or sorted(set(out_indices)) != [*out_indices]:
            raise ConfigError(f'out_indices must be increasing stage indices in 0..3, got {out_indices}')
        num_stages = out_indices[-1] + 1
        if frozen_stages not in range(-1, num_stages + 1):
            raise ConfigError(
                f'frozen_stages must be in -1..{num_stages} for out_indices {out_indices}, got {frozen_stages}'
            )
        if not 0 <= drop_path_rate < 1:
            raise ConfigError(f'drop_path_rate must be in [0, 1), got {drop_path_rate}')

        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.score_observer: ScoreObserver | None = None

        total = sum(arch.depths[:num_stages])
        drop_rates = [drop_path_rate * i / max(total - 1, 1) for i in range(total)]
        key_grid = (arch.key_grid, arch.key_grid)
        embed_eps, reduction_eps, block_eps = arch.norm_eps
        self.stages = nn.ModuleList()
        for i in range(num_stages):
            dim, heads, depth, num_va = (
                arch.embed_dims[i],
                arch.num_heads[i],
                arch.depths[i],
                num_va_layers[i],
            )
            query_grid = (arch.query_grids[i], arch.query_grids[i])
            ratio = STRIDES[-1] // STRIDES[i]
            scores_used = depth > num_va or (attention_residual and i < num_stages - 1)
            blocks = []
            for j in range(depth):
                if j < num_va:
                    keep = scores_used and j == num_va - 1
                    attn = VanillaAttention(dim, heads, ratio, key_grid, key_reduction == 'pool', keep, reduction_eps)
                else:
                    attn = LessAttention(dim, heads, ratio, key_grid, query_grid, reduction_eps)
                blocks.append(
                    Block(
                        dim,
                        attn,
                        arch.mlp_ratios[i],
                        drop_rates[sum(arch.depths[:i]) + j],
                        block_eps,
                    )
                )
            residual = None
            if attention_residual and i > 0:
                residual = AttentionResidual(arch.num_heads[i - 1], heads, layer_scale_init)
            source = arch.embed_dims[i - 1] if i else in_channels
            stride = STRIDES[i] // STRIDES[i - 1] if i else STRIDES[0]
            embed = PatchEmbed(source, dim, arch.patch_kernels[i], stride, embed_eps)
            self.stages.append(Stage(embed, residual, blocks, nn.LayerNorm(dim, eps=block_eps), with_cp))
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature pyramid.

        Inside, the image is zero-padded right and bottom to a multiple of 32 and the maps are cropped back.

        Args:
            x: Images of shape (B, in_channels, H, W), any H, W >= 1.

        Returns:
            For i in ``out_indices`` a map of shape (B, C_i, ceil(H / s_i), ceil(W / s_i)), s = 4, 8, 16, 32.
        """
        height, width = x.shape[-2:]
        pad_h, pad_w = -height % STRIDES[-1], -width % STRIDES[-1]
        if pad_h or pad_w:
            x = F.pad(x, (0, pad_w, 0, pad_h))
        x = x.contiguous(memory_format=torch.channels_last)
        scores, grid, outs = None, None, []
        for i, stage in enumerate(self.stages):
            x, scores, grid = stage(x, scores, grid, self.score_observer)
            if i in self.out_indices:
                # Contiguous: mmcv's RoIAlign on the CPU reads a channels-last map as if it were, without a word.
                outs.append(x[..., : -(-height // STRIDES[i]), : -(-width // STRIDES[i])].contiguous())
        return tuple(outs)

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says."""
        if self._from_scratch and not self.is_init:
            print_log(
                'LaViT starts from scratch: no ImageNet weights of LaViT exist. To start from a backbone checkpoint: '
                '--cfg-options model.backbone.init_cfg.checkpoint=FILE',
                logger='current',
            )
        super().init_weights()

    def train(self, mode: bool = True) -> LaViT:
        """Set the mode, except for frozen parts and, with ``norm_eval``, BatchNorms, which stay in eval mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        return [self.stages[0].patch_embed, *self.stages[: self.frozen_stages]]


def _resolve_init_cfg(init_cfg: dict | list[dict] | None) -> tuple[list[dict], bool]:
    """Return a list of initialisers, and whether a checkpoint was asked for but none was named."""
    default = deepcopy(DEFAULT_INIT)
    if init_cfg is None:
        return default, False
    if isinstance(init_cfg, dict) and init_cfg.get('type') in ('Pretrained', 'PretrainedInit'):
        if init_cfg.get('checkpoint') is None:
            return default, True
        return [*default, init_cfg], False
    return init_cfg, False
