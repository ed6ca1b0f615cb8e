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

Reading order: :class:`VanillaAttention`, :class:`LessAttention` and :class:`AttentionResidual` are the paper;
:class:`Stage` says how they follow one another, :class:`LaViT` is what a config names. What any pyramid transformer
has is in ``layers.py``, sizes in ``arch.py``, resampling in ``resample.py``, layouts and CPU kernels in ``layout.py``,
the loss in ``diagonality.py``.

Shapes: B images, N = h * w tokens of the stage, C channels, H heads, d = C / H channels per head, K reference keys,
M reduced keys. Scores of all heads lie side by side, (B, N, H * K): a feature map with H * K channels at the stage's
resolution. Nothing of N x M is ever kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmlavit.errors import ConfigError
from mmlavit.utils.allocator import keep_freed_memory

from .arch import STRIDES, Arch, resolve_arch, resolve_num_va_layers
from .arguments import require_flags, require_integer, require_number, resolve_stages
from .biased_attention import attend_with_bias
from .factored import AnyScores, FactoredScores, factor, factoring_pays
from .initialization import resolve_init_cfg
from .layers import DropPath, FeedForward, LayerNorm, PatchEmbed, SpatialReduction
from .layout import (
    PointwiseLinear,
    Scores,
    folding_pays,
    is_plain_eager,
    is_traced,
    linear,
    linear_each,
    to_map,
    to_tokens,
)
from .onnx_attention import attend_in_pieces, is_traced_for_onnx
from .recompute import checkpoint_contexts, recompute
from .resample import Grid, ceil_div, is_symbolic, resample_tokens, share_traced_matrices


def attend(scores: AnyScores, values: Tensor, proj: nn.Module) -> Tensor:
    """Softmax over the reference keys, weighted sum of values, output projection.

    ``softmax(A_h) V_h W_h`` summed over heads is one matrix product with ``V_h W_h`` stacked over (head, key). Where
    that is cheaper (:func:`folding_pays`), scores and output also stay in token layout without a transpose.

    Args:
        scores (Scores or FactoredScores): Pre-softmax scores of shape (B, N, H * K).
        values (Tensor): Values of shape (B, K, C).
        proj (nn.Module): Output projection, C to C.

    Returns:
        Tensor: Tokens of shape (B, N, C).
    """
    if isinstance(scores, FactoredScores):
        return proj(scores.attend(values))
    heads, keys = scores.heads, values.shape[1]
    values = values.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, H, K, d)

    # Under autocast a softmax gives float32, which is written, read and rounded again before the product: not with a
    # dtype. The kernel computes in float32 anyway.
    dtype = None if scores.map.dtype is torch.float32 else scores.map.dtype

    def softmax(a: Tensor) -> Tensor:
        return a.unflatten(-1, (heads, keys)).softmax(dim=-1, dtype=dtype)  # (B, N, H, K)

    if not folding_pays(proj, scores.map.shape[1], keys, heads):
        out = recompute(softmax, scores.map, lambda probs: torch.matmul(probs.transpose(1, 2), values))
        return proj(out.transpose(1, 2).flatten(2))
    weight = proj.weight.unflatten(1, (heads, -1)).transpose(0, 1)  # (H, C, d)
    projected = torch.matmul(weight, values.transpose(2, 3)).transpose(1, 2).flatten(2)  # (B, C, H * K)
    bias = proj.bias.expand(scores.map.shape[0], -1)
    return recompute(softmax, scores.map, lambda probs: linear_each(probs.flatten(2), projected, bias))


def transform_keys(a: Tensor, delta_theta: Tensor) -> Tensor:
    """Give ``A Theta^T`` for scores A of shape (B, N, H * K), ``Theta = I + delta_theta`` of shape (K, K)."""
    theta = torch.eye(delta_theta.shape[0], device=delta_theta.device, dtype=delta_theta.dtype) + delta_theta
    return linear(a.unflatten(-1, (-1, theta.shape[0])).flatten(1, 2), theta, None).reshape_as(a)


class VanillaAttention(nn.Module):
    """Multi-head attention whose scores may be kept for the less-attention layers (paper, VA layer).

    ``softmax(Q K^T / sqrt(d) + E) V`` on all M reduced keys; E is the attention residual from the previous stage.

    Args:
        dim (int): Channels C.
        heads (int): Number of heads H.
        ratio (int): Spatial reduction of keys and values.
        reference_grid (tuple[int, int]): Grid of the K reference keys.
        pool (bool): Whether keys and values are averaged to the reference grid, which makes the layer linear in
            pixels (``key_reduction='pool'``, ours).
        keep_scores (bool): Whether to return the scores on the reference keys. It changes nothing else.
    """

    def __init__(
        self, dim: int, heads: int, ratio: int, reference_grid: Grid, pool: bool = False, keep_scores: bool = True
    ) -> None:
        super().__init__()
        self.heads = heads
        self.reference_grid = reference_grid
        self.pool = pool
        self.keep_scores = keep_scores
        self.scale = (dim // heads) ** -0.5
        self.q = PointwiseLinear(dim, dim)
        self.kv = PointwiseLinear(dim, 2 * dim)
        self.proj = PointwiseLinear(dim, dim)
        self.reduction = SpatialReduction(dim, ratio)

    def read_keys(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """Reduce tokens (B, N, C) on a grid to those that keys and values are made of, (B, M, C), and their grid."""
        keys, key_grid = self.reduction(x, grid), self.reduction.reduced_grid(grid)
        if self.pool:
            return resample_tokens(keys, key_grid, self.reference_grid), self.reference_grid
        return keys, key_grid

    def forward(self, x: Tensor, grid: Grid, residual: Scores | None = None) -> tuple[Tensor, Scores | None]:
        """Attend.

        Args:
            x (Tensor): Normalised tokens of shape (B, N, C).
            grid (tuple[int, int]): Grid of the tokens.
            residual (Scores, optional): Attention residual E.

        Returns:
            tuple[Tensor, Scores or None]: Tokens (B, N, C), and the scores ``Q (D K)^T / sqrt(d) + E``, D the
            averaging of keys to their reference grid, or None if they are not kept.
        """
        keys, key_grid = self.read_keys(x, grid)  # (B, M, C)
        key, value = self.kv(keys).chunk(2, dim=-1)  # (B, M, C) each

        if not is_symbolic(*key_grid) and key_grid == self.reference_grid:
            scores = self._reference_scores(x, None, key, grid, residual)
            return attend(scores, value, self.proj), scores if self.keep_scores else None

        query = self.q(x)
        out = self.proj(self._attend_all(query, key, value, key_grid, residual))
        if not self.keep_scores:
            return out, None
        key = resample_tokens(key, key_grid, self.reference_grid)  # (B, K, C)
        return out, self._reference_scores(x, query, key, grid, residual)

    def _reference_scores(
        self, x: Tensor, query: Tensor | None, key: Tensor, grid: Grid, residual: Scores | None
    ) -> Scores:
        """Scores of tokens x (B, N, C), or of queries that are there, on the reference keys (B, K, C).

        ``Q_h K_h^T = x (W_h^T K_h^T) + b_h K_h^T``: where that is cheaper (:func:`folding_pays`), the query projection
        is folded into the few keys, and the scores of all heads come out side by side.
        """
        key = key.unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1) * self.scale  # (B, H, d, K)
        if query is None and folding_pays(self.q, x.shape[1], key.shape[-1], self.heads):
            weight = self.q.weight.unflatten(0, (self.heads, -1))  # (H, d, C)
            folded = torch.matmul(key.transpose(2, 3), weight).flatten(1, 2)  # (B, H * K, C)
            bias = (self.q.bias.view(self.heads, -1, 1) * key).sum(dim=2).flatten(1)  # (B, H * K)
            scores = linear_each(x, folded, bias)
        else:
            query = self.q(x) if query is None else query
            query = query.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, N, d)
            scores = torch.matmul(query, key).transpose(1, 2).flatten(2)  # (B, N, H * K)
        return Scores(scores if residual is None else scores + residual.map, self.heads, grid)

    def _attend_all(self, query: Tensor, key: Tensor, value: Tensor, key_grid: Grid, residual: Scores | None) -> Tensor:
        """Fused attention of queries (B, N, C) on all M keys and values (B, M, C): (B, N, C).

        The residual on M keys is ``E U^T``, U (M, K) the resampling from the reference keys. It is not built as a
        whole: E joins the queries as K extra columns and U the keys, so that the fused kernel adds the two products; on
        a CPU without gradients it exists for some queries at a time.
        """
        query, key, value = (t.unflatten(-1, (self.heads, -1)) for t in (query, key, value))  # (B, N or M, H, d)
        head_dim, scale = query.shape[-1], self.scale
        if residual is not None:
            extra = residual.map.unflatten(-1, (self.heads, -1)).to(query.dtype)  # (B, N, H, K)
            columns = extra.shape[-1]
            identity = torch.eye(columns, device=key.device, dtype=key.dtype)
            up = resample_tokens(identity[None], self.reference_grid, key_grid)[0].to(key.dtype)  # (M, K)
            if query.device.type == 'cpu' and not torch.is_grad_enabled() and is_plain_eager():
                return attend_with_bias(query, key, value, extra, up, scale).flatten(2)
            up = up[:, None].expand(*key.shape[:3], columns)  # (B, M, H, K)
            queries, keys, scale = [query * scale, extra], [key, up], 1.0
            if not is_traced_for_onnx():  # whose runtimes take the product apart
                # Fused kernels want one width for queries, keys and values; on a GPU they are made for multiples of 32.
                padding = -(head_dim + columns) % (32 if query.is_cuda else 8)
                queries.append(query.new_zeros(()).expand(*query.shape[:3], padding))
                keys.append(key.new_zeros(()).expand(*key.shape[:3], padding))
                value = F.pad(value, (0, columns + padding))
            query, key = torch.cat(queries, dim=-1), torch.cat(keys, dim=-1)
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        if is_traced_for_onnx():
            out = attend_in_pieces(query, key * scale, value, self.reduction.ratio**2)
        else:
            out = F.scaled_dot_product_attention(query, key, value, scale=scale)
        return out[..., :head_dim].transpose(1, 2).flatten(2)


class LessAttention(nn.Module):
    """Attention from transformed scores of the previous layer: no queries, no keys (paper, LA layer).

    ``A_l = Psi (Theta A_{l-1}^T)^T = Psi A_{l-1} Theta^T`` and ``softmax(A_l) V``, one Psi and Theta for all heads.

    ``delta_theta`` is K x K and exact at any image size. ``delta_psi`` lives on the reference query grid, and
    ``Psi = I + U delta_psi D`` (ours): at the architecture's own size the paper's free matrix (where the reference
    grid is the stage's), elsewhere the same weights on averaged queries, while fine detail passes through I.

    Args:
        dim (int): Channels C.
        heads (int): Number of heads H.
        ratio (int): Spatial reduction of the values.
        reference_grid (tuple[int, int]): Grid of the K reference keys.
        query_grid (tuple[int, int]): Reference grid of the queries.
    """

    def __init__(self, dim: int, heads: int, ratio: int, reference_grid: Grid, query_grid: Grid) -> None:
        super().__init__()
        self.heads = heads
        self.reference_grid = reference_grid
        self.query_grid = query_grid
        self.v = PointwiseLinear(dim, dim)
        self.proj = PointwiseLinear(dim, dim)
        self.reduction = SpatialReduction(dim, ratio)
        # Plain parameters, so that no initialiser of linears touches them: a layer begins by (almost) reusing the
        # previous attention.
        keys, queries = reference_grid[0] * reference_grid[1], query_grid[0] * query_grid[1]
        self.delta_theta = nn.Parameter(torch.empty(keys, keys))
        self.delta_psi = nn.Parameter(torch.empty(queries, queries))
        for delta in (self.delta_theta, self.delta_psi):
            nn.init.trunc_normal_(delta, std=0.02 / delta.shape[0] ** 0.5)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Load; of a vanilla layer's keys and values, the values."""
        for name in ('weight', 'bias'):
            both = state_dict.pop(f'{prefix}kv.{name}', None)
            if both is not None:
                state_dict[f'{prefix}v.{name}'] = both.chunk(2)[1]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor, scores: AnyScores) -> tuple[Tensor, AnyScores]:
        """Attend with transformed scores.

        Args:
            x (Tensor): Normalised tokens of shape (B, N, C).
            scores (Scores or FactoredScores): Scores of the previous layer, on the grid of x.

        Returns:
            tuple[Tensor, Scores or FactoredScores]: Tokens (B, N, C) and this layer's scores.
        """
        values = self.read_values(x, scores.grid)
        if factoring_pays(scores, self.query_grid):
            scores = factor(scores, self.query_grid)
        scores = self.transform(scores)
        return attend(scores, self.v(values), self.proj), scores

    def read_values(self, x: Tensor, grid: Grid) -> Tensor:
        """Reduce tokens (B, N, C) to the reference grid of keys (B, K, C), whose values are attended to."""
        return resample_tokens(self.reduction(x, grid), self.reduction.reduced_grid(grid), self.reference_grid)

    def transform(self, scores: AnyScores) -> AnyScores:
        """``Psi A Theta^T`` for scores A, in the form that they come in."""
        if isinstance(scores, FactoredScores):
            return scores.transform(self.key_mixing(), self.delta_psi)
        return self.transform_queries(scores._replace(map=transform_keys(scores.map, self.key_mixing())))

    def key_mixing(self) -> Tensor:
        """``Theta - I`` of shape (K, K)."""
        return self.delta_theta

    def transform_queries(self, scores: Scores) -> Scores:
        """``Psi A`` for scores A."""
        a, grid = scores.map, scores.grid  # (B, N, H * K)
        coarse = self.reduce_queries(a, grid)  # (B, n, H * K)
        return scores._replace(map=a + resample_tokens(torch.matmul(self.delta_psi, coarse), self.query_grid, grid))

    def reduce_queries(self, a: Tensor, grid: Grid) -> Tensor:
        """Average scores (B, N, H * K) of queries on a grid to the reference grid of queries."""
        return resample_tokens(a, grid, self.query_grid)


class AttentionResidual(nn.Module):
    """One stage's scores as a residual of the next stage's (paper, "Residual-based Attention Downsampling").

    ``E = LS(Conv1x1(Norm(DWConv(A))))`` with heads as channels. The depthwise convolution (kernel and stride 2) runs
    over the grid of queries; the reference keys are the same in both stages. The norm standardises each head of each
    image over its queries and keys: it has neither state nor weights. No convolution has a bias (all ours).

    Args:
        in_heads (int): Heads of the stage that the scores come from.
        out_heads (int): Heads of the stage that they go to.
        layer_scale_init (float): Initial LayerScale factor, one per head.
    """

    eps = 1e-5

    def __init__(self, in_heads: int, out_heads: int, layer_scale_init: float) -> None:
        super().__init__()
        # Plain parameters, as in LessAttention: the kernel starts as an average.
        self.dwconv = nn.Parameter(torch.full((in_heads, 1, 2, 2), 0.25))
        self.conv1x1 = nn.Parameter(torch.empty(out_heads, in_heads))
        nn.init.trunc_normal_(self.conv1x1, std=in_heads**-0.5)
        self.layer_scale = nn.Parameter(torch.full((out_heads,), float(layer_scale_init)))

    def forward(self, scores: AnyScores) -> Scores:
        """Turn scores (B, N, in_heads * K) into E of shape (B, N / 4, out_heads * K)."""
        a = scores.map
        channels = a.shape[2]
        keys = channels // scores.heads
        kernel = self.dwconv.repeat_interleave(keys, dim=0)  # (in_heads * K, 1, 2, 2)
        x = F.conv2d(to_map(a, scores.grid), kernel, stride=2, groups=channels)
        grid = (x.shape[2], x.shape[3])
        x = to_tokens(x).unflatten(2, (scores.heads, keys)).transpose(1, 2)  # (B, in_heads, N / 4, K)
        mix = self.layer_scale[:, None] * self.conv1x1  # (out_heads, in_heads)
        if x.is_cuda:
            return Scores(_standardise_and_mix(x, mix, self.eps).transpose(1, 2).flatten(2), mix.shape[0], grid)
        # Its statistics are in float32 in any precision: squares of scores do not fit into float16. Not of the
        # channels-last map, where torch's kernel for CPUs loses digits, nor by F.group_norm, which refuses one score.
        x = torch.group_norm(x, scores.heads, eps=self.eps)
        return Scores(torch.matmul(mix, x.transpose(1, 2)).flatten(2), mix.shape[0], grid)


def _standardise_and_mix(x: Tensor, mix: Tensor, eps: float) -> Tensor:
    """Standardise each head of each image, and mix heads, by kernels that fill a GPU.

    That of ``group_norm`` has one thread block for each head of each image, and there are few of these; a product with
    heads in the last but one dimension is as many tiny ones as there are queries.

    Args:
        x (Tensor): Scores of shape (B, in_heads, N, K).
        mix (Tensor): Weights of shape (out_heads, in_heads).
        eps (float): Added to variances.

    Returns:
        Tensor: Scores of shape (B, out_heads, N, K).
    """
    flat = x.flatten(2)  # (B, in_heads, N * K)
    wide = flat if flat.dtype is torch.float64 else flat.float()  # squares of scores do not fit into float16
    variance, mean = torch.var_mean(wide, dim=2, correction=0, keepdim=True)
    mix = mix * (variance + eps).rsqrt().transpose(1, 2)  # (B, out_heads, in_heads)
    mixed = torch.matmul(mix.to(flat.dtype), (wide - mean).to(flat.dtype))
    return mixed.unflatten(2, x.shape[2:])


class Block(nn.Module):
    """Pre-norm transformer block: attention, then feed-forward, each with drop path.

    Args:
        dim (int): Channels C.
        attn (VanillaAttention or LessAttention): Attention.
        mlp_ratio (float): Hidden channels of the feed-forward over C.
        drop_path (float): Drop path rate.
    """

    def __init__(self, dim: int, attn: VanillaAttention | LessAttention, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = attn
        self.norm2 = LayerNorm(dim)
        self.mlp = FeedForward(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Tensor, grid: Grid, scores: AnyScores | None, residual: Scores | None
    ) -> tuple[Tensor, AnyScores | None]:
        """Run the block.

        Args:
            x (Tensor): Tokens of shape (B, N, C).
            grid (tuple[int, int]): Grid of the tokens.
            scores (Scores, optional): Scores of the layer before, which a less-attention layer transforms.
            residual (Scores, optional): Attention residual, which a vanilla layer adds to its own scores.

        Returns:
            tuple[Tensor, Scores or None]: Tokens (B, N, C) and the scores that the next layer takes.
        """
        out, scores = self.attend(x, grid, scores, residual)
        x = x + self.drop_path(out)
        return x + self.drop_path(self.mlp(self.norm2(x), grid)), scores

    def attend(
        self, x: Tensor, grid: Grid, scores: AnyScores | None, residual: Scores | None
    ) -> tuple[Tensor, AnyScores | None]:
        """Run the attention layer alone; arguments and scores as in :meth:`forward`, tokens (B, N, C) of the branch."""
        if isinstance(self.attn, LessAttention):
            return self.attn(self.norm1(x), scores)
        return self.attn(self.norm1(x), grid, residual)


ScoreObserver = Callable[[VanillaAttention | LessAttention, AnyScores], None]
"""Called in a forward with every attention layer that gives scores, and these: all less-attention layers, and vanilla
layers with ``keep_scores``."""


class Stage(nn.Module):
    """Patch embedding, attention residual from the previous stage, blocks, LayerNorm.

    Args:
        patch_embed (PatchEmbed): Patch embedding.
        residual (AttentionResidual, optional): Attention residual.
        blocks (Sequence[Block]): Blocks; less-attention blocks come last.
        with_cp (bool): Whether to checkpoint the residual and the blocks.
    """

    def __init__(
        self, patch_embed: PatchEmbed, residual: AttentionResidual | None, blocks: Sequence[Block], with_cp: bool
    ) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.residual = residual
        self.blocks = nn.ModuleList(blocks)
        self.norm = LayerNorm(patch_embed.proj.out_channels)
        self.with_cp = with_cp

    def forward(
        self, x: Tensor, scores: AnyScores | None, observer: ScoreObserver | None
    ) -> tuple[Tensor, AnyScores | None]:
        """Run the stage.

        Args:
            x (Tensor): Map of shape (B, C_in, H, W).
            scores (Scores, optional): Last scores of the previous stage.
            observer (Callable, optional): Called with the layers that give scores.

        Returns:
            tuple[Tensor, Scores or None]: Normalised map (B, C, h, w), channels-last in memory, and last scores.
        """
        residual = self._run(self.residual, scores) if self.residual is not None else None
        x, grid = self.patch_embed(x)
        scores = None
        for block in self.blocks:
            x, scores = self._run(block, x, grid, scores, residual)
            residual = None  # only the first layer takes it
            if observer is not None and scores is not None:
                observer(block.attn, scores)
        return to_map(self.norm(x), grid), scores

    def _run(self, module: nn.Module, *args: Any) -> Any:
        """Call a module, checkpointed if that is on."""
        if self.with_cp and torch.is_grad_enabled():
            # A compiler accepts no such contexts, and chooses by itself what to keep.
            contexts = {} if torch.compiler.is_compiling() else dict(context_fn=checkpoint_contexts)
            return checkpoint(module, *args, use_reentrant=False, **contexts)
        return module(*args)


@MODELS.register_module()
class LaViT(BaseModule):
    """Less-Attention Vision Transformer with feature-pyramid outputs at strides 4, 8, 16, 32.

    Example:
        >>> import torch
        >>> from mmlavit import LaViT
        >>> [tuple(f.shape) for f in LaViT('tiny')(torch.rand(1, 3, 97, 161))]
        [(1, 64, 25, 41), (1, 128, 13, 21), (1, 256, 7, 11), (1, 512, 4, 6)]

    Args:
        arch (str or dict): 'nano', 'tiny', 'small', 'base' (or the first letter); 'pvt_v2_b0' to 'pvt_v2_b5' for
            weights of PVTv2; 'mit_b0' to 'mit_b5' for those of MiT (SegFormer); or a dict as described in
            :class:`~mmlavit.models.arch.Arch`.
        in_channels (int): Channels of the input image.
        num_va_layers (int or Sequence[int], optional): Vanilla layers per stage, an int for all stages or four; None
            takes the architecture's. With ``depths`` and ``attention_residual=False`` the model is the plain pyramid
            transformer.
        attention_residual (bool): Whether scores of a stage enter the first layer of the next one.
        key_reduction (str): 'conv': vanilla layers read all keys on the stride-32 grid. 'pool' (ours): they read the
            reference keys, averaged from those, and the backbone is linear in pixels; the same weights, and the same
            function at the architecture's own size (224 px; nano: 128 px).
        drop_path_rate (float): Drop path rate of the last block; it grows linearly from 0.
        layer_scale_init (float): Initial LayerScale factor of the attention residuals.
        out_indices (Sequence[int]): Stages whose maps are returned, increasing. Stages after the last are not built.
        frozen_stages (int): -1: nothing is frozen. 0: the first patch embedding. k: also stages 1 to k, whole. Frozen
            parts get no gradient and stay in eval mode.
        with_cp (bool): Whether to recompute blocks and attention residuals in the backward pass to save memory.
        init_cfg (dict or list[dict], optional): mmengine initialisation; None: as in ``initialization.py``.
            ``dict(type='Pretrained', checkpoint=FILE, prefix='backbone.')`` loads a checkpoint on top of that; with
            ``checkpoint=None`` the backbone starts from scratch and says so in one logged line.

    Raises:
        ConfigError: If an argument is out of its range; the message names it.
    """

    num_extra_tokens = 0
    """Class tokens, which mmpretrain's Grad-CAM asks for."""

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
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        init_cfg, self._from_scratch = resolve_init_cfg(init_cfg)
        super().__init__(init_cfg)
        arch = resolve_arch(arch)
        num_va_layers = resolve_num_va_layers(num_va_layers, arch)
        require_integer('in_channels', in_channels)
        if key_reduction not in ('conv', 'pool'):
            raise ConfigError(f"key_reduction must be 'conv' or 'pool', got {key_reduction!r}")
        require_number('drop_path_rate', drop_path_rate, 0, 1)
        require_number('layer_scale_init', layer_scale_init, -inf, inf)
        require_flags(attention_residual=attention_residual, with_cp=with_cp)
        self.in_channels = in_channels
        self.out_indices, self.frozen_stages = resolve_stages(out_indices, frozen_stages)
        self.score_observer: ScoreObserver | None = None

        self.stages = nn.ModuleList()
        depths = arch.depths[: self.out_indices[-1] + 1]
        for i, depth in enumerate(depths):
            residual = None
            if attention_residual and i > 0:
                residual = AttentionResidual(arch.num_heads[i - 1], arch.num_heads[i], layer_scale_init)
            source = arch.embed_dims[i - 1] if i else in_channels
            stride = STRIDES[i] // STRIDES[i - 1] if i else STRIDES[0]
            embed = PatchEmbed(source, arch.embed_dims[i], arch.patch_kernels[i], stride)
            keep_scores = depth > num_va_layers[i] or (attention_residual and i < len(depths) - 1)
            layers = _build_attention(arch, i, num_va_layers[i], keep_scores, key_reduction == 'pool')
            before, step = sum(depths[:i]), float(drop_path_rate) / max(sum(depths) - 1, 1)
            blocks = [
                Block(arch.embed_dims[i], attn, arch.mlp_ratios[i], (before + j) * step)
                for j, attn in enumerate(layers)
            ]
            self.stages.append(Stage(embed, residual, blocks, with_cp))
        _set_norm_eps(self.stages, arch)
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature pyramid.

        Inside, the image is zero-padded right and bottom to a multiple of 32 and the maps are cropped back.

        Args:
            x (Tensor): Images of shape (B, in_channels, H, W), any H, W >= 1.

        Returns:
            tuple[Tensor, ...]: For i in ``out_indices`` a map of shape (B, C_i, ceil(H / s_i), ceil(W / s_i)),
            s = 4, 8, 16, 32.

        Raises:
            ConfigError: If they have another shape.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ConfigError(
                f'expected images of shape (B, in_channels={self.in_channels}, H, W), got {tuple(x.shape)}'
            )
        if x.device.type == 'cpu' and not is_traced():
            keep_freed_memory()
        share_traced_matrices(True)
        try:
            return self._forward(x)
        finally:
            share_traced_matrices(False)

    def _forward(self, x: Tensor) -> tuple[Tensor, ...]:
        height, width = x.shape[-2:]
        # An export knows the padded sides as 32 times a number.
        pad_h, pad_w = (ceil_div(side, STRIDES[-1]) * STRIDES[-1] - side for side in (height, width))
        if is_symbolic(pad_h, pad_w) or pad_h or pad_w:
            x = F.pad(x, (0, pad_w, 0, pad_h))
        x = x.contiguous(memory_format=torch.channels_last)
        scores, outs = None, []
        for i, stage in enumerate(self.stages):
            x, scores = stage(x, scores, self.score_observer)
            if i in self.out_indices:
                # Contiguous: mmcv's compiled RoIAlign silently reads a channels-last map as if it were. Not by
                # contiguous(), which would ask an export whether anything was cut off.
                crop = x[..., : ceil_div(height, STRIDES[i]), : ceil_div(width, STRIDES[i])]
                outs.append(crop.clone(memory_format=torch.contiguous_format))
        return tuple(outs)

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says."""
        if self._from_scratch and not self.is_init:
            print_log(
                'LaViT starts from scratch: there are no ImageNet-1k weights of it. To start from a checkpoint: '
                '--cfg-options model.backbone.init_cfg.checkpoint=FILE',
                logger='current',
            )
        super().init_weights()

    def train(self, mode: bool = True) -> LaViT:
        """Set the mode, except for frozen parts, which stay in eval mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Give the depth of a parameter, for mmpretrain's learning rates that decay by layers.

        Args:
            param_name (str): Its name.
            prefix (str): What it begins with in a model, such as ``backbone.``.

        Returns:
            tuple[int, int]: 0 for the first patch embedding, then the number of the block: a stage's patch embedding
            belongs to the block before it, its attention residual to its first block and its norm to its last;
            and the number of depths, of which the last is for what comes after the backbone.
        """
        counts = [len(stage.blocks) for stage in self.stages]
        number = sum(counts) + 2
        if not param_name.startswith(f'{prefix}stages.'):
            return number - 1, number
        stage, part, *rest = param_name.removeprefix(f'{prefix}stages.').split('.')
        before = sum(counts[: int(stage)])
        inside = dict(patch_embed=0, residual=1, norm=counts[int(stage)])
        return before + (int(rest[0]) + 1 if part == 'blocks' else inside[part]), number

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        return [self.stages[0].patch_embed, *self.stages[: self.frozen_stages]]


def _build_attention(
    arch: Arch, stage: int, num_va: int, keep_scores: bool, pool: bool
) -> list[VanillaAttention | LessAttention]:
    """Attention of a stage's layers: vanilla ones, of which the last may keep its scores, then less attention."""
    dim, heads, ratio = arch.embed_dims[stage], arch.num_heads[stage], STRIDES[-1] // STRIDES[stage]
    key_grid = (arch.key_grid, arch.key_grid)
    query_grid = (arch.query_grids[stage], arch.query_grids[stage])
    vanilla = [
        VanillaAttention(dim, heads, ratio, key_grid, pool, keep_scores and j == num_va - 1) for j in range(num_va)
    ]
    less = [LessAttention(dim, heads, ratio, key_grid, query_grid) for _ in range(arch.depths[stage] - num_va)]
    return vanilla + less


def _set_norm_eps(stages: nn.ModuleList, arch: Arch) -> None:
    """Give LayerNorms the epsilons of the architecture."""
    embed_eps, reduction_eps, block_eps = arch.norm_eps
    for name, module in stages.named_modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = embed_eps if 'patch_embed' in name else reduction_eps if 'reduction' in name else block_eps
