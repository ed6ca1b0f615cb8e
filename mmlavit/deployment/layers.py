"""Layers in the form that an export needs: sizes are symbols, and nothing is asked of their values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlavit.errors import ConfigError
from mmlavit.models.resample import ceil_div


class AdaptiveAvgPool2d(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as one small matrix per axis; ONNX has it for an output of 1 x 1 only.

    Args:
        output_size (int): Rows and columns of the output.
    """

    def __init__(self, output_size: int) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        """Average x of shape (B, C, H, W) to (B, C, s, s), s the output size."""
        rows, columns = (self._matrix(side, x) for side in x.shape[-2:])
        return torch.matmul(torch.matmul(rows, x), columns.t())

    def _matrix(self, side: int, x: Tensor) -> Tensor:
        """Matrix (s, side) of the means over the bins ``floor(i * side / s)`` to ``ceil((i + 1) * side / s)``."""
        bins = torch.arange(self.output_size, device=x.device)[:, None]
        first, last = bins * side // self.output_size, ceil_div((bins + 1) * side, self.output_size)
        position = torch.arange(side, device=x.device)[None, :]
        inside = (position >= first) & (position < last)
        return inside.to(x.dtype) / (last - first)


class Upsample(nn.Module):
    """``mmseg.models.utils.Upsample`` by a whole factor; mmseg's takes the size of the example for a constant.

    Args:
        factor (int): Rows and columns of the output for one of the input.
        mode (str): Interpolation.
        align_corners (bool, optional): As for ``F.interpolate``.
    """

    def __init__(self, factor: int, mode: str, align_corners: bool | None) -> None:
        super().__init__()
        self.factor, self.mode, self.align_corners = factor, mode, align_corners

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge x of shape (B, C, H, W)."""
        size = x.shape[2] * self.factor, x.shape[3] * self.factor
        return F.interpolate(x, size, mode=self.mode, align_corners=self.align_corners)


def replace_layers(module: nn.Module) -> None:
    """Replace, in place, the layers below a module that have no form for any size: adaptive pooling, mmseg's Upsample.

    Args:
        module (nn.Module): Such as a head of mmseg.

    Raises:
        ConfigError: If one cannot be replaced.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size not in (1, (1, 1)):
            size = child.output_size
            if isinstance(size, tuple) and len({*size}) == 1:
                size = size[0]
            if not isinstance(size, int):
                raise ConfigError(f'{name} pools to {size}; only equal numbers of rows and columns can be exported')
            setattr(module, name, AdaptiveAvgPool2d(size))
        elif type(child).__name__ == 'Upsample' and hasattr(child, 'scale_factor'):
            factor = child.scale_factor
            if child.size or not factor or isinstance(factor, tuple) or factor != int(factor):
                raise ConfigError(f'{child} cannot be exported; expected a whole scale_factor')
            setattr(module, name, Upsample(int(factor), child.mode, child.align_corners))
        else:
            replace_layers(child)


def resize(x: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Interpolate maps (B, C, H, W) to another height and width."""
    return F.interpolate(x, size=tuple(size), mode='bilinear', align_corners=align_corners)
