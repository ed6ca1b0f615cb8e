"""Mixed precision on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Mixed precision in bfloat16 on the CPU, for which mmengine's ``AmpOptimWrapper`` insists on a GPU.

    bfloat16 has the range of float32, so losses are not scaled. It is faster on processors that multiply it (AVX-512
    BF16, AMX) and slower on others.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the forward of a model in bfloat16 where autocast allows it."""
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield
