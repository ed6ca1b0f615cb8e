"""The model of a runner without what wraps it for several processes."""

from __future__ import annotations

from mmengine.model import is_model_wrapper
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def unwrap(model: nn.Module) -> nn.Module:
    """Give the model inside a wrapper for several processes, or the model itself."""
    return model.module if is_model_wrapper(model) else model


def find_plain_model(runner) -> nn.Module | None:
    """Give the model of a runner without its wrapper.

    Args:
        runner (Runner): mmengine's.

    Returns:
        nn.Module or None: The model; None if it is not built yet, or its parameters are elsewhere, as with FSDP.
    """
    model = runner.model
    if isinstance(model, DistributedDataParallel):
        model = model.module
    return model if isinstance(model, nn.Module) and not is_model_wrapper(model) else None
