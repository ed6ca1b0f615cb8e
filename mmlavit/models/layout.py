"""Layouts of tokens and scores, and linear maps by the kernel that is fast on the device (ours).

Tokens (B, N, C) and channels-last maps (B, C, h, w) are the same bytes, so a linear is a 1x1 convolution. On the CPU
torch sends float32 convolutions to oneDNN and linears to the BLAS it was built with, after a copy of the bias over
the whole result; oneDNN is up to twice as fast where that BLAS does not use the processor's widest vectors, and
no slower elsewhere. On CUDA, in traces, and with one thread, where torch has another convolution, a linear is a linear.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .resample import Grid, resample_tokens

SMALL = 20480
"""Elements up to which torch keeps the convolution of one image from oneDNN."""

STRIP_BYTES = 4 << 20
"""Bytes of a wide map that :func:`map_strips` lets exist at a time."""


class Scores(NamedTuple):
    """Pre-softmax scores of one layer on the K reference keys.

    Args:
        map (Tensor): Scores of shape (B, N, H * K), the heads side by side: a feature map with H * K channels.
        heads (int): Number of heads H.
        grid (tuple[int, int]): Grid of the N queries.
    """

    map: Tensor
    heads: int
    grid: Grid

    def average(self, grid: Grid) -> Tensor:
        """Average queries to a smaller grid of S cells: (B, S, H * K), in float32 at least."""
        # Where scores differ little from their mean, rounded means could differ more by rounding.
        scores = self.map.float() if self.map.dtype.itemsize < 4 else self.map
        return resample_tokens(scores, self.grid, grid)


class PointwiseLinear(nn.Linear):
    """``nn.Linear`` on tokens (B, N, C), computed by the kernel that is fast on the device."""

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens of shape (B, N, C_in) to (B, N, C_out)."""
        return linear(x, self.weight, self.bias)


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, h, w) to (B, h * w, C); no copy for a channels-last map."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def to_map(x: Tensor, grid: Grid) -> Tensor:
    """(B, h * w, C) to (B, C, h, w); no copy: tokens are the bytes of a channels-last map.

    Permuting last leaves the strides of a channels-last map also for one image; transposing first does not, and torch
    then copies the map before every convolution.
    """
    return x.reshape(x.shape[0], *grid, x.shape[2]).permute(0, 3, 1, 2)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute ``x @ weight.T + bias``.

    Args:
        x (Tensor): Tokens of shape (B, N, C_in).
        weight (Tensor): Weight of shape (C_out, C_in).
        bias (Tensor, optional): Bias of shape (C_out,).

    Returns:
        Tensor: Tokens of shape (B, N, C_out).
    """
    # Sizes are looked at last: in a trace they are symbols, on which nothing may depend.
    if x.device.type != 'cpu' or not is_plain_eager() or torch.get_num_threads() == 1 or not is_plain(weight):
        return F.linear(x, weight, bias)
    if x.dim() != 3 or (x.shape[0] == 1 and x.numel() <= SMALL):
        return F.linear(x, weight, bias)
    return to_tokens(F.conv2d(to_map(x, (x.shape[1], 1)), weight[:, :, None, None], bias))


def linear_each(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute :func:`linear` with a weight of its own for every image.

    Args:
        x (Tensor): Tokens of shape (B, N, C_in).
        weight (Tensor): Weights of shape (B, C_out, C_in).
        bias (Tensor): Biases of shape (B, C_out).

    Returns:
        Tensor: Tokens of shape (B, N, C_out).
    """
    if x.device.type == 'cpu' and is_plain_eager() and x.shape[0] == 1:
        return linear(x, weight[0], bias[0])
    if torch.compiler.is_exporting():  # where the bias of a baddbmm is copied for every token
        return torch.matmul(x, weight.transpose(1, 2)) + bias[:, None]
    return torch.baddbmm(bias[:, None].expand(-1, x.shape[1], -1), x, weight.transpose(1, 2))


def map_strips(
    function: Callable[[Tensor, Grid], Tensor], x: Tensor, grid: Grid, channels: int, strip_bytes: int = STRIP_BYTES
) -> Tensor:
    """Apply a map of 3x3 neighbourhoods in strips of rows, so that what is wide inside of it stays in the caches.

    The whole wide map, of a batch or at detection sizes, is larger than the caches and than what the allocator keeps:
    every use would fault its pages in again.

    Args:
        function (Callable): Takes tokens (b, rows * w, C) and their grid, and gives tokens of that shape.
        x (Tensor): Tokens of shape (B, h * w, C).
        grid (tuple[int, int]): Their grid, (h, w).
        channels (int): Channels of the wide map.
        strip_bytes (int): Bytes of the wide map that may exist at a time.

    Returns:
        Tensor: ``function(x, grid)``, of shape (B, h * w, C).
    """
    height, width = grid
    out = torch.empty_like(x)
    row_bytes = width * channels * x.element_size()
    images = max(1, strip_bytes // (row_bytes * height))
    rows = min(height, max(8, strip_bytes // row_bytes))  # below 8, the rows computed twice would cost more
    for image in range(0, x.shape[0], images):
        batch = slice(image, image + images)
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            # The kernel sees one row more on either side; what its padding gives there is cut off again.
            first, last = max(top - 1, 0), min(bottom + 1, height)
            strip = function(x[batch, first * width : last * width], (last - first, width))
            out[batch, top * width : bottom * width] = strip[:, (top - first) * width : (bottom - first) * width]
    return out


def folding_pays(layer: nn.Module, tokens: int, keys: int, heads: int) -> bool:
    """Whether to multiply a linear of C channels into the few keys, or their values, instead of calling it.

    For N tokens, folding costs ``C * C * K + N * C * K * H`` multiply-adds and calling ``N * C * C + N * C * K``: with
    49 keys and 64 channels per head, folding is cheaper above 49 (H = 1) to 148 tokens (H = 8). A trace folds
    always: its sizes may be symbols. A linear that was replaced or wrapped (LoRA, quantisation) or has hooks (ZeRO-3)
    is always called.

    Args:
        layer (nn.Module): The linear.
        tokens (int): Number of tokens N.
        keys (int): Number of keys K.
        heads (int): Number of heads H.

    Returns:
        bool: True if it is to be folded.
    """
    if type(layer) is not PointwiseLinear or has_hooks(layer):
        return False
    if is_traced():
        return True
    channels = layer.in_features
    return is_plain(layer.weight) and tokens * (channels + keys - keys * heads) > channels * keys


def has_hooks(*layers: nn.Module) -> bool:
    """Whether somebody watches a layer, or changes what goes in or comes out."""
    kinds = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')
    return any(getattr(layer, kind) for layer in layers for kind in kinds)


def is_plain(weight: Tensor) -> bool:
    """Whether a weight is no tensor of another class, as quantisation makes them, which may know products only."""
    return type(weight) in (Tensor, nn.Parameter)


def is_traced() -> bool:
    """Whether operators are compiled, traced or exported."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def is_plain_eager() -> bool:
    """Whether operators run one by one: neither traced nor counted."""
    return not is_traced() and _get_current_dispatch_mode() is None
