"""Layers that any pyramid transformer has: patch embedding, spatial reduction, feed-forward, drop path."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layout import PointwiseLinear, has_hooks, is_plain_eager, map_strips, to_map, to_tokens
from .recompute import recompute
from .resample import Grid


class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` over C channels, whose gradients are right in half precision on a CPU as well.

    torch's kernel there sums the gradients of weight and bias over all tokens in the dtype of the input. In bfloat16,
    40 % of the sum over 4,480 tokens are lost, 74 % over 20,000 (torch 2.10).

    Args:
        dim (int): Channels C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x of shape (..., C)."""
        if x.device.type != 'cpu' or x.dtype not in (torch.bfloat16, torch.float16) or not torch.is_grad_enabled():
            return super().forward(x)
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class DropPath(nn.Module):
    """Drop the residual branch of whole images during training (stochastic depth).

    Args:
        rate (float): Probability of a drop, in [0, 1).
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


class PatchConv(nn.Conv2d):
    """Convolution whose kernel is (or contains) its stride; a class of its own so that ``init_cfg`` can name it."""


class PatchEmbed(nn.Module):
    """Downsample a map by a strided convolution, then LayerNorm over channels (paper, "Downsampling Operation").

    Args:
        in_channels (int): Channels of the input.
        dim (int): Channels of the tokens.
        kernel (int): Kernel size; equal to the stride in the paper, larger and padded by half in PVTv2.
        stride (int): Stride.
    """

    def __init__(self, in_channels: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = PatchConv(in_channels, dim, kernel, stride, padding=kernel // 2 if kernel > stride else 0)
        self.norm = LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Embed x of shape (B, in_channels, H, W) as tokens (B, N, dim); return them and their grid."""
        x = self.proj(x)
        return self.norm(to_tokens(x)), (x.shape[2], x.shape[3])


class Expansion(PointwiseLinear):
    """First linear of a feed-forward; a class of its own so that ``init_cfg`` can name it."""


class FeedForward(nn.Module):
    """Two linears with a 3x3 depthwise convolution between them (ours, as in PVTv2): position at any image size.

    Args:
        dim (int): Channels of the tokens.
        hidden (int): Channels between the linears.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Expansion(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = PointwiseLinear(hidden, dim)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Map tokens x of shape (B, N, C), N = h * w of the grid, to (B, N, C)."""
        # What was put in the place of a layer, or watches it, is called, once.
        own = type(self.fc1) is Expansion and type(self.fc2) is PointwiseLinear and type(self.dwconv) is nn.Conv2d
        if not own or has_hooks(self.fc1, self.dwconv, self.fc2):
            return self._forward(x, grid)
        if torch.compiler.is_exporting():
            return self._forward_map(to_map(x, grid))
        if torch.is_grad_enabled() or x.device.type != 'cpu' or not is_plain_eager():
            return self._forward(x, grid)
        return map_strips(self._forward, x, grid, self.fc1.out_features)

    def _forward(self, x: Tensor, grid: Grid) -> Tensor:
        x = self.dwconv(to_map(self.fc1(x), grid))  # (B, hidden, h, w)
        return recompute(F.gelu, to_tokens(x), self.fc2)

    def _forward_map(self, x: Tensor) -> Tensor:
        """Do the same on a map (B, C, h, w) with 1x1 convolutions, so that other runtimes can keep one layout."""
        x = F.conv2d(x, self.fc1.weight[:, :, None, None], self.fc1.bias)
        x = F.gelu(self.dwconv(x))
        x = F.conv2d(x, self.fc2.weight[:, :, None, None], self.fc2.bias)
        return to_tokens(x)


class SpatialReduction(nn.Module):
    """Reduce the map that keys and values are made of to stride 32 (ours).

    Args:
        dim (int): Channels of the tokens.
        ratio (int): Kernel and stride of the convolution; at 1 there is neither convolution nor norm.
    """

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        if ratio > 1:
            self.conv = PatchConv(dim, dim, ratio, ratio)
            self.norm = LayerNorm(dim)

    def reduced_grid(self, grid: Grid) -> Grid:
        """Grid after the reduction."""
        return grid[0] // self.ratio, grid[1] // self.ratio

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Reduce tokens x of shape (B, N, C) to (B, M, C), M = N / ratio^2."""
        if self.ratio == 1:
            return x
        return self.norm(to_tokens(self.conv(to_map(x, grid))))
