"""Multiply-adds of a model, with the attention products that common counters leave out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


@dataclass(frozen=True)
class Complexity:
    """Size and cost of a model for one input.

    Args:
        params: Parameters.
        macs: Multiply-adds of matrix products, convolutions and attention. Norms, activations, softmax, pooling,
            RoIAlign and NMS are not counted.
        parts: Multiply-adds of each direct child module that has any.
    """

    params: int
    macs: int
    parts: dict[str, int]


def _sdpa_cpu_flops(query, key, value, *args, out_shape=None, **kwargs) -> int:
    """FLOPs of the CPU kernel of scaled_dot_product_attention, which torch's counter does not know."""
    return sdpa_flop_count(query, key, value)


def count_complexity(model: nn.Module, run: Callable[[], object]) -> Complexity:
    """Count what one call costs.

    Args:
        model: Model.
        run: Runs the model once, without arguments; gradients are off meanwhile.

    Returns:
        Parameters of the model and multiply-adds of the call.
    """
    mapping = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _sdpa_cpu_flops}
    counter = FlopCounterMode(display=False, depth=None, custom_mapping=mapping)
    # The fast path of nn.MultiheadAttention is one operator that no counter sees into.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), counter:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    # The counter names the modules whose forward it has seen by class and path, such as "MaskRCNN.backbone.stages.0".
    counts = {key: sum(value.values()) for key, value in counter.get_flop_counts().items()}
    parts = {
        child: _flops_below(module, f'{type(model).__name__}.{child}', counts) // 2
        for child, module in model.named_children()
    }
    return Complexity(
        params=sum(p.numel() for p in model.parameters()),
        macs=counter.get_total_flops() // 2,
        parts={child: macs for child, macs in parts.items() if macs},
    )


def _flops_below(module: nn.Module, path: str, counts: dict[str, int]) -> int:
    """FLOPs of a module; of its children if it was not called itself (heads are often run by other methods)."""
    if path in counts:
        return counts[path]
    return sum(_flops_below(child, f'{path}.{name}', counts) for name, child in module.named_children())
