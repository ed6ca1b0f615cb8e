"""LaViT once more, literally: whole matrices, one image and one head at a time, no kernel of the package.

The independent source that the tests compare with. Written from the formulas, slow on purpose.
"""

from __future__ import annotations

from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor


def axis_matrix(src: int, dst: int) -> Tensor:
    """One axis of D or U: exact fractions for an average, torch's own interpolation for growth."""
    if dst > src:
        eye = torch.eye(src, dtype=torch.float64)[None]  # (1, src "channels", src)
        return F.interpolate(eye, size=dst, mode='linear', align_corners=False)[0].T.contiguous()
    matrix = torch.zeros(dst, src, dtype=torch.float64)
    for row in range(dst):
        start, stop = Fraction(row * src, dst), Fraction((row + 1) * src, dst)
        for col in range(src):
            overlap = min(stop, Fraction(col + 1)) - max(start, Fraction(col))
            matrix[row, col] = float(max(overlap, Fraction(0)) / (stop - start))
    return matrix


def grid_matrix(src: tuple[int, int], dst: tuple[int, int]) -> Tensor:
    """D or U as one (dst tokens, src tokens) matrix."""
    return torch.kron(axis_matrix(src[0], dst[0]), axis_matrix(src[1], dst[1]))


def linear(layer, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias


def reduce_map(reduction, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """x: (N, C) of one image."""
    if reduction.ratio == 1:
        return x, grid
    image = x.T.reshape(1, -1, *grid)
    reduced = F.conv2d(image, reduction.conv.weight, reduction.conv.bias, stride=reduction.ratio)
    tokens = reduced.flatten(2)[0].T
    norm = reduction.norm
    return F.layer_norm(tokens, norm.normalized_shape, norm.weight, norm.bias, norm.eps), tuple(reduced.shape[2:])


def vanilla(attn, x: Tensor, grid, residual):
    """x: (N, C); residual: list of (N, K) per head or None. Returns (N, C) and a list of (N, K)."""
    keys, key_grid = reduce_map(attn.reduction, x, grid)
    down = grid_matrix(key_grid, attn.reference_grid)
    if attn.pool:
        keys, key_grid = down @ keys, attn.reference_grid
        down = torch.eye(len(keys), dtype=x.dtype)
    up = grid_matrix(attn.reference_grid, key_grid)  # (M, K)
    q, (k, v) = linear(attn.q, x), linear(attn.kv, keys).chunk(2, dim=1)
    width = q.shape[1] // attn.heads
    outs, stored = [], []
    for h in range(attn.heads):
        part = slice(h * width, (h + 1) * width)
        scores = q[:, part] @ k[:, part].T / width**0.5
        reference = q[:, part] @ (down @ k[:, part]).T / width**0.5
        if residual is not None:
            scores = scores + residual[h] @ up.T
            reference = reference + residual[h]
        outs.append(torch.softmax(scores, dim=1) @ v[:, part])
        stored.append(reference)
    return linear(attn.proj, torch.cat(outs, dim=1)), stored


def less(attn, x: Tensor, grid, scores):
    values, key_grid = reduce_map(attn.reduction, x, grid)
    v = linear(attn.v, grid_matrix(key_grid, attn.reference_grid) @ values)
    theta = torch.eye(len(v), dtype=x.dtype) + attn.delta_theta
    down, up = grid_matrix(grid, attn.query_grid), grid_matrix(attn.query_grid, grid)
    psi = torch.eye(len(x), dtype=x.dtype) + up @ attn.delta_psi @ down
    width = v.shape[1] // attn.heads
    scores = [psi @ (theta @ a.T).T for a in scores]
    outs = [torch.softmax(a, dim=1) @ v[:, h * width : (h + 1) * width] for h, a in enumerate(scores)]
    return linear(attn.proj, torch.cat(outs, dim=1)), scores


def attention_residual(module, scores: list[list[Tensor]], grid) -> list[list[Tensor]]:
    """scores: [image][head] of (N, K). Returns the same of the next stage, (N / 4, K)."""
    height, width = grid
    averaged = []
    for image in scores:
        heads = []
        for h, a in enumerate(image):
            rows = []
            for y in range(0, height, 2):
                for x in range(0, width, 2):
                    rows.append(
                        sum(
                            module.dwconv[h, 0, dy, dx] * a[(y + dy) * width + x + dx]
                            for dy in range(2)
                            for dx in range(2)
                        )
                    )
            heads.append(torch.stack(rows))
        averaged.append(heads)
    normed = [[(a - a.mean()) / (a.var(unbiased=False) + module.eps).sqrt() for a in image] for image in averaged]
    return [
        [
            module.layer_scale[o] * sum(module.conv1x1[o, h] * image[h] for h in range(module.dwconv.shape[0]))
            for o in range(len(module.layer_scale))
        ]
        for image in normed
    ]


def layer_norm(norm, x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + norm.eps).sqrt() * (
        norm.weight
    ) + norm.bias


def feed_forward(mlp, x: Tensor, grid) -> Tensor:
    hidden = linear(mlp.fc1, x)
    image = hidden.T.reshape(1, -1, *grid)
    image = F.conv2d(image, mlp.dwconv.weight, mlp.dwconv.bias, padding=1, groups=image.shape[1])
    return linear(mlp.fc2, F.gelu(image.flatten(2)[0].T))


def backbone(model, x: Tensor) -> list[Tensor]:
    """All maps of a LaViT without drop path, for images whose sides are multiples of 32."""
    outs, scores, grid = [], None, None
    for stage in model.stages:
        residual = attention_residual(stage.residual, scores, grid) if stage.residual is not None else None
        proj = stage.patch_embed.proj
        x = F.conv2d(x, proj.weight, proj.bias, proj.stride, proj.padding)
        grid = tuple(x.shape[2:])
        scores, images = [], []
        for b, image in enumerate(x):
            tokens = layer_norm(stage.patch_embed.norm, image.flatten(1).T)
            current = residual[b] if residual is not None else None
            for block in stage.blocks:
                normed = layer_norm(block.norm1, tokens)
                attn = block.attn
                if hasattr(attn, 'delta_psi'):
                    out, current = less(attn, normed, grid, current)
                else:
                    out, current = vanilla(attn, normed, grid, current)
                    if block is not stage.blocks[-1] and not hasattr(after(stage, block).attn, 'delta_psi'):
                        current = None  # only the first vanilla layer sees the residual
                tokens = tokens + out
                tokens = tokens + feed_forward(block.mlp, layer_norm(block.norm2, tokens), grid)
            images.append(layer_norm(stage.norm, tokens).T.reshape(1, -1, *grid))
            scores.append(current)
        x = torch.cat(images)
        outs.append(x)
    return outs


def after(stage, block):
    blocks = list(stage.blocks)
    return blocks[blocks.index(block) + 1]
