"""Resampling of token grids to and from the reference grids (ours; the paper has one image size).

Both D (to a reference grid) and U (from it) are separable: one small matrix per axis, computed from the two sizes
alone. Every row sums to one and equal sizes give exactly the identity, so at the reference size the model is the
paper's. Plain matrix products are deterministic on CUDA and survive ``torch.compile`` and export with dynamic sizes,
which adaptive pooling does not.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

Grid = tuple[int, int]
"""Height and width of a token grid; tokens are in row-major order, N = height * width."""

# A LaViT needs about ten for each new side of its images, which it pads to multiples of 32: these are all of them for
# sides to 3,200 pixels, in 5 MB.
_MAX_MATRICES = 1024
_matrices: dict[tuple, Tensor] = {}
_making_room = threading.Lock()
_traced: dict[tuple, Tensor] | None = None  # of the pass through a backbone that torch.export is tracing


def resample_matrix(
    src: int, dst: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Build the matrix that resamples one axis (ours).

    Args:
        src (int): Number of positions before.
        dst (int): Number of positions after. Fewer: the mean over equal, fractional bins. More: bilinear interpolation
            with ``align_corners=False``. Equal: exactly the identity.
        device (torch.device or str, optional): Device of the result.
        dtype (torch.dtype, optional): Floating point type of the result; torch's default when None.

    Returns:
        Tensor: Matrix of shape (dst, src) whose rows sum to one.
    """
    dtype = dtype or torch.get_default_dtype()
    if is_symbolic(src, dst):  # an export that serves all sizes may not ask which of the two is larger
        sizes = [torch.scalar_tensor(size, device=device) for size in (src, dst)]
        forms = _average_matrix(src, dst, device), _interpolation_matrix(src, dst, device)
        return torch.where(sizes[1] <= sizes[0], *forms).to(dtype)
    build = _average_matrix if dst <= src else _interpolation_matrix
    return build(src, dst, device).to(dtype)


def is_symbolic(*sizes: int) -> bool:
    """Whether a size is a symbol of ``torch.export``: nothing may depend on its value."""
    return any(isinstance(size, torch.SymInt) for size in sizes)


def ceil_div(length: int, divisor: int) -> int:
    """Divide and round up. Not ``-(-length // divisor)``: ONNX divides negative numbers towards zero."""
    return (length + divisor - 1) // divisor


def _average_matrix(src: int, dst: int, device: torch.device | str | None) -> Tensor:
    """Matrix (dst, src) of the means over equal, fractional bins."""
    row, col = _positions(src, dst, device)
    # Overlap of the bin [row, row + 1) * src / dst with the pixel [col, col + 1), times dst.
    overlap = torch.minimum((row + 1) * src, (col + 1) * dst) - torch.maximum(row * src, col * dst)
    return overlap.clamp(min=0).double() / src


def _interpolation_matrix(src: int, dst: int, device: torch.device | str | None) -> Tensor:
    """Matrix (dst, src) of bilinear interpolation."""
    row, col = _positions(src, dst, device)
    # Distance of the centre (row + 1/2) * src / dst - 1/2, kept inside the axis, from the pixel, times 2 * dst.
    centre = ((2 * row + 1) * src - dst).clamp(0, 2 * dst * (src - 1))
    distance = (centre - 2 * dst * col).abs()
    return (2 * dst - distance).clamp(min=0).double() / (2 * dst)


def _positions(src: int, dst: int, device: torch.device | str | None) -> tuple[Tensor, Tensor]:
    """Rows (dst, 1) and columns (1, src) in whole numbers: exact, also where the sizes are symbols."""
    return torch.arange(dst, device=device)[:, None], torch.arange(src, device=device)[None, :]


def cached_matrix(src: int, dst: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Give ``resample_matrix(src, dst)``, from a cache in eager mode; not to be changed in place."""
    if _is_traced_by_python() and _traced is not None:
        key = (str(src), str(dst), device, dtype)
        if key not in _traced:
            _traced[key] = resample_matrix(src, dst, device=device, dtype=dtype)
        return _traced[key]
    # Sizes may be symbolic, or tensors, and a cache would be a side effect.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return resample_matrix(src, dst, device=device, dtype=dtype)
    if type(torch.empty(0)) is not Tensor:  # in a mode of fake tensors, which takes no real ones
        return resample_matrix(src, dst, device=device, dtype=dtype)
    key = (src, dst, device, dtype)
    matrix = _matrices.get(key)
    if matrix is None:
        # A matrix made under inference_mode could not be used by a later training step. It is made on the CPU, since
        # some devices (Apple's) have no double precision.
        with torch.inference_mode(False):
            matrix = resample_matrix(src, dst, device='cpu', dtype=dtype).to(device)
        if type(matrix) is Tensor:  # not a fake tensor of some tracing mode
            _keep(key, matrix)
    return matrix


def share_traced_matrices(share: bool) -> None:
    """Let ``torch.export`` build each matrix once from now on, or no longer; without effect elsewhere.

    A backbone calls it at both ends of its pass: what one pass made is of no other graph. For all sizes, a matrix takes
    40 nodes, and most layers of a stage need the same.

    Args:
        share (bool): Whether a pass begins; else it ends.
    """
    global _traced
    if _is_traced_by_python():
        _traced = {} if share else None


def _is_traced_by_python() -> bool:
    """Whether ``torch.export`` runs this code itself; compilers read it instead."""
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()


def _keep(key: tuple, matrix: Tensor) -> None:
    """Keep a matrix for the next time; the oldest goes if there are too many.

    The oldest, not the one used longest ago: to look a matrix up then costs no more than to look it up.
    """
    with _making_room:
        while len(_matrices) >= _MAX_MATRICES:
            del _matrices[next(iter(_matrices))]
        _matrices[key] = matrix


def resample_tokens(x: Tensor, src: Grid, dst: Grid) -> Tensor:
    """Resample a token grid, each axis by :func:`resample_matrix` (ours; D and U of the design).

    Args:
        x (Tensor): Tokens of shape (B, src_h * src_w, C).
        src (Grid): Grid of x.
        dst (Grid): Grid of the result.

    Returns:
        Tensor: Tokens of shape (B, dst_h * dst_w, C); x itself if the grids are equal.
    """
    (height, width), (dst_h, dst_w) = src, dst
    symbolic = is_symbolic(*src, *dst)  # then both axes are resampled, rows first, whatever the sizes
    if not symbolic and src == dst:
        return x
    batch, _, channels = x.shape

    def resample_rows(x: Tensor) -> Tensor:
        matrix = cached_matrix(height, dst_h, x.device, x.dtype)
        return torch.matmul(matrix, x.reshape(batch, height, width * channels))  # (B, dst_h, width * C)

    # The rows come first where they shrink and last where they grow: the other axis then sees the smaller map.
    rows = height
    if symbolic or dst_h < height:
        x, rows = resample_rows(x), dst_h
    if symbolic or dst_w != width:
        matrix = cached_matrix(width, dst_w, x.device, x.dtype)
        x = torch.matmul(matrix, x.reshape(batch * rows, width, channels))  # (B * rows, dst_w, C)
        width = dst_w
    if not symbolic and dst_h > height:
        x = resample_rows(x)
    return x.reshape(batch, dst_h * dst_w, channels)
