"""Linear maps of tokens in the layout and by the kernel that is fast on the device (ours).

Tokens (B, N, C) and channels-last maps (B, C, h, w) are the same bytes, so a linear is a 1x1 convolution. On the CPU
torch sends float32 convolutions to oneDNN and linears to the BLAS it was built with, after a copy of the bias over
the whole result; oneDNN is up to twice as fast where that BLAS does not use the processor's widest vectors, and
no slower elsewhere. On CUDA, in traces, and with one thread, where torch has another convolution, a linear is a linear.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .resample import Grid

SMALL = 20480
"""Elements up to which torch keeps the convolution of one image from oneDNN."""


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
        x: Tokens of shape (B, N, C_in).
        weight: Weight of shape (C_out, C_in).
        bias: Bias of shape (C_out,), or None.

    Returns:
        Tokens of shape (B, N, C_out).
    """
    small = x.shape[0] == 1 and x.numel() <= SMALL
    if small or x.device.type != 'cpu' or not is_plain_eager() or torch.get_num_threads() == 1:
        return F.linear(x, weight, bias)
    return to_tokens(F.conv2d(to_map(x, (x.shape[1], 1)), weight[:, :, None, None], bias))


def linear_each(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute :func:`linear` with a weight of its own for every image.

    Args:
        x: Tokens of shape (B, N, C_in).
        weight: Weights of shape (B, C_out, C_in).
        bias: Biases of shape (B, C_out).

    Returns:
        Tokens of shape (B, N, C_out).
    """
    if x.shape[0] == 1 and x.device.type == 'cpu' and is_plain_eager():
        return linear(x, weight[0], bias[0])
    return torch.baddbmm(bias[:, None].expand(-1, x.shape[1], -1), x, weight.transpose(1, 2))


def is_plain_eager() -> bool:
    """Whether operators run one by one: not compiled, traced, exported or counted."""
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing()) and _get_current_dispatch_mode() is None
