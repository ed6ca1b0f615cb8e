"""Architectures of LaViT.

The sizes of tiny, small and base are ours, found by matching the parameters and multiply-adds that the paper
publishes; nano is a small one for demos and tests, with references for its own size of 128 px instead of 224. The
architectures pvt_v2_* and mit_* have the trunks of PVTv2 and of SegFormer's MiT, so that their public weights fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from mmlavit.errors import ConfigError

from .arguments import is_number, is_positive_integer, require_integer

STRIDES = (4, 8, 16, 32)
"""Strides of the four stages."""


@dataclass(frozen=True)
class Arch:
    """Sizes of the four stages.

    Args:
        embed_dims (Sequence[int]): Channels.
        num_heads (Sequence[int]): Attention heads; each divides its ``embed_dims``.
        depths (Sequence[int]): Layers.
        num_va_layers (Sequence[int]): Vanilla-attention layers, the first ones of a stage; the others are
            less-attention layers.
        mlp_ratios (Sequence[float]): Hidden channels of the feed-forward over ``embed_dims``.
        patch_kernels (Sequence[int]): Kernels of the patch embeddings: the stride (4, 2, 2, 2), or odd and larger,
            then padded by half.
        key_grid (int): Side of the reference key grid: the side of the stride-32 map at the architecture's own size.
        query_grids (Sequence[int]): Sides of the reference query grids.
        norm_eps (Sequence[float]): Epsilons of the LayerNorms of patch embeddings, of spatial reductions, and of blocks
            and outputs; a converted checkpoint may bring its own.
    """

    embed_dims: Sequence[int]
    num_heads: Sequence[int]
    depths: Sequence[int]
    num_va_layers: Sequence[int]
    mlp_ratios: Sequence[float]
    patch_kernels: Sequence[int] = (4, 2, 2, 2)
    key_grid: int = 7
    query_grids: Sequence[int] = (7, 7, 14, 7)
    norm_eps: Sequence[float] = (1e-6, 1e-6, 1e-6)

    def __post_init__(self) -> None:
        """Check lengths and ranges.

        Raises:
            ConfigError: If a value does not fit; the message names the key.
        """
        for field in fields(self):
            value, place = getattr(self, field.name), f'arch[{field.name!r}]'
            if field.name == 'key_grid':
                require_integer(place, value)
                continue
            length, whole = 3 if field.name == 'norm_eps' else 4, field.name not in ('mlp_ratios', 'norm_eps')
            fits = is_positive_integer if whole else _is_positive_number
            if not isinstance(value, (list, tuple)) or len(value) != length or not all(map(fits, value)):
                kind = 'integers' if whole else 'numbers'
                raise ConfigError(f'{place} must be {length} positive {kind}, got {value!r}')
        for dim, heads in zip(self.embed_dims, self.num_heads, strict=True):
            if dim % heads:
                raise ConfigError(f"arch['embed_dims']: {dim} channels do not divide into {heads} heads")
        for dim, ratio in zip(self.embed_dims, self.mlp_ratios, strict=True):
            if int(dim * ratio) < 1:
                raise ConfigError(f"arch['mlp_ratios']: {ratio} of {dim} channels is less than one")
        for kernel, stride in zip(self.patch_kernels, (4, 2, 2, 2), strict=True):
            if kernel != stride and (kernel < stride or kernel % 2 == 0):
                raise ConfigError(
                    f"arch['patch_kernels']: {kernel} is neither the stride {stride} nor an odd number above it"
                )


def _is_positive_number(value: Any) -> bool:
    return is_number(value) and value > 0


PVT_V2_EPS = (1e-5, 1e-5, 1e-6)
"""LayerNorm epsilons of PVTv2, as ``norm_eps`` of an architecture."""

_MIT = dict(mlp_ratios=(4, 4, 4, 4), patch_kernels=(7, 3, 3, 3))
_PVT_V2 = dict(mlp_ratios=(8, 8, 4, 4), patch_kernels=(7, 3, 3, 3), norm_eps=PVT_V2_EPS)

ARCH_ZOO = {
    'nano': Arch((32, 64, 128, 192), (1, 2, 4, 6), (2, 2, 3, 2), (1, 1, 1, 1), (4, 4, 4, 4), key_grid=4,
                 query_grids=(4, 4, 8, 4)),
    'tiny': Arch((64, 128, 256, 512), (1, 2, 4, 8), (2, 2, 2, 2), (1, 1, 1, 1), (4, 8, 4, 4)),
    'small': Arch((64, 128, 320, 512), (1, 2, 5, 8), (3, 4, 6, 3), (1, 1, 2, 1), (4, 8, 4, 4)),
    'base': Arch((64, 128, 320, 512), (1, 2, 5, 8), (3, 4, 18, 3), (1, 1, 2, 1), (4, 8, 4, 4)),
    'pvt_v2_b0': Arch((32, 64, 160, 256), (1, 2, 5, 8), (2, 2, 2, 2), (1, 1, 1, 1), **_PVT_V2),
    'pvt_v2_b1': Arch((64, 128, 320, 512), (1, 2, 5, 8), (2, 2, 2, 2), (1, 1, 1, 1), **_PVT_V2),
    'pvt_v2_b2': Arch((64, 128, 320, 512), (1, 2, 5, 8), (3, 4, 6, 3), (1, 1, 2, 1), **_PVT_V2),
    'pvt_v2_b3': Arch((64, 128, 320, 512), (1, 2, 5, 8), (3, 4, 18, 3), (1, 1, 2, 1), **_PVT_V2),
    'pvt_v2_b4': Arch((64, 128, 320, 512), (1, 2, 5, 8), (3, 8, 27, 3), (1, 1, 2, 1), **_PVT_V2),
    'pvt_v2_b5': Arch((64, 128, 320, 512), (1, 2, 5, 8), (3, 6, 40, 3), (1, 1, 2, 1),
                      **{**_PVT_V2, 'mlp_ratios': (4, 4, 4, 4)}),
    'mit_b0': Arch((32, 64, 160, 256), (1, 2, 5, 8), (2, 2, 2, 2), (1, 1, 1, 1), **_MIT),
    'mit_b1': Arch((64, 128, 320, 512), (1, 2, 5, 8), (2, 2, 2, 2), (1, 1, 1, 1), **_MIT),
    'mit_b2': Arch((64, 128, 320, 512), (1, 2, 5, 8), (3, 4, 6, 3), (1, 1, 2, 1), **_MIT),
    'mit_b3': Arch((64, 128, 320, 512), (1, 2, 5, 8), (3, 4, 18, 3), (1, 1, 2, 1), **_MIT),
    'mit_b4': Arch((64, 128, 320, 512), (1, 2, 5, 8), (3, 8, 27, 3), (1, 1, 2, 1), **_MIT),
    'mit_b5': Arch((64, 128, 320, 512), (1, 2, 5, 8), (3, 6, 40, 3), (1, 1, 2, 1), **_MIT),
}  # fmt: skip


def resolve_arch(arch: str | Mapping) -> Arch:
    """Look up a named architecture or check a dict.

    Args:
        arch (str or Mapping): 'nano', 'tiny', 'small', 'base' (or the first letter), 'pvt_v2_b0' to 'pvt_v2_b5',
            'mit_b0' to 'mit_b5', or a mapping with the keys of :class:`Arch`.

    Returns:
        Arch: The architecture.

    Raises:
        ConfigError: If the name is unknown, a key is unknown or missing, or a value does not fit.
    """
    if isinstance(arch, str):
        letters = {name[0]: name for name in ('nano', 'tiny', 'small', 'base')}
        name = letters.get(arch.lower(), arch.lower())
        if name in ARCH_ZOO:
            return ARCH_ZOO[name]
        raise ConfigError(
            f'arch must be one of {", ".join(ARCH_ZOO)} (of {", ".join(letters.values())} the first letter will do) '
            f'or a dict, got {arch!r}'
        )
    if not isinstance(arch, Mapping):
        raise ConfigError(f'arch must be a name or a dict, got {arch!r}')
    known = [field.name for field in fields(Arch)]
    required = known[:5]
    unknown, missing = [k for k in arch if k not in known], [k for k in required if k not in arch]
    if unknown or missing:
        raise ConfigError(f'arch dict has unknown keys {unknown} and lacks {missing}; known keys: {", ".join(known)}')
    return Arch(**arch)


def resolve_num_va_layers(num_va_layers: int | Sequence[int] | None, arch: Arch) -> tuple[int, ...]:
    """Give the vanilla layers of each stage.

    Args:
        num_va_layers (int or Sequence[int], optional): One number for all stages, one for each stage, or None for the
            architecture's own.
        arch (Arch): Architecture.

    Returns:
        tuple[int, ...]: Four numbers, each between 1 and the depth of its stage.

    Raises:
        ConfigError: If a number is out of that range or there are not four.
    """
    if num_va_layers is None:
        num_va_layers = arch.num_va_layers
    elif isinstance(num_va_layers, int):
        num_va_layers = (num_va_layers,) * 4
    four = isinstance(num_va_layers, (list, tuple)) and len(num_va_layers) == 4
    if not four or any(
        not is_positive_integer(n) or n > depth for n, depth in zip(num_va_layers, arch.depths, strict=True)
    ):
        raise ConfigError(
            f'num_va_layers must be between 1 and the depth of each stage {tuple(arch.depths)}, got {num_va_layers!r}: '
            'the first layer of a stage computes the scores that the others reuse'
        )
    return tuple(num_va_layers)
