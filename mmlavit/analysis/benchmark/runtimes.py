"""What runs a backbone: torch, in eager mode or compiled, or a runtime for exported models."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmlavit.deployment.onnx import write_onnx
from mmlavit.deployment.quantization import to_int8
from mmlavit_serve.runtimes import RUNTIMES as SESSIONS
from mmlavit_serve.runtimes import Session

Runnable = Callable[[Tensor], Any]


def compile_model(model: nn.Module, threads: int) -> Runnable:
    """Compile a model for one size at a time; in evaluation mode its weights are laid out for the kernels."""
    from torch._inductor import config

    config.freezing = not model.training
    return torch.compile(model, dynamic=False)


def lay_out_channels_last(model: nn.Module, threads: int) -> Runnable:
    """Run convolutions on channels-last maps, which are faster on most CPUs."""
    model = model.to(memory_format=torch.channels_last)
    return lambda images: model(images.contiguous(memory_format=torch.channels_last))


class Exported:
    """A model exported to ONNX for the size of the images it is given; a new size is exported when it comes.

    Args:
        runtime (type[Session]): What runs it, with the settings that :class:`mmlavit_serve.Predictor` uses.
        model (nn.Module): Model in evaluation mode.
        threads (int): CPU threads.
        int8_for (str, optional): Quantise the model for this runtime, with the ranges that activations take on the
            images themselves: the speed is that of any ranges.
    """

    def __init__(self, runtime: type[Session], model: nn.Module, threads: int, int8_for: str | None = None) -> None:
        self.runtime, self.model, self.threads, self.int8_for = runtime, _OneInput(model), threads, int8_for
        self.sessions: dict[torch.Size, Session] = {}

    def __call__(self, images: Tensor) -> list[np.ndarray]:
        """Run the model on images (B, C, H, W) on the CPU."""
        if images.shape not in self.sessions:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, 'backbone.onnx')
                write_onnx(self.model, dict(images=images), file)
                if self.int8_for:
                    to_int8(file, file, [dict(images=images.numpy())], self.int8_for)
                self.sessions[images.shape] = self.runtime(file, self.threads, 'cpu')
        return list(self.sessions[images.shape].run(dict(images=images.numpy())).values())


class _OneInput(nn.Module):
    """A backbone whose argument is called ``images``, whatever its own name for it."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Any:
        return self.backbone(images)


RUNTIMES: Mapping[str, Callable[[nn.Module, int], Runnable]] = {
    'eager': lambda model, threads: model,
    'channels_last': lay_out_channels_last,
    'compile': compile_model,
    **{name: partial(Exported, runtime) for name, runtime in SESSIONS.items()},
    **{f'{name}_int8': partial(Exported, runtime, int8_for=name) for name, runtime in SESSIONS.items()},
}
"""Make of a model what is measured, with a number of CPU threads."""

TITLES = {
    'channels_last': 'channels-last maps',
    'compile': 'torch.compile',
    'onnxruntime': 'ONNX Runtime',
    'openvino': 'OpenVINO',
    'onnxruntime_int8': 'ONNX Runtime, int8',
    'openvino_int8': 'OpenVINO, int8',
}
"""What tables call them."""

EXPORTED = (*SESSIONS, *(f'{name}_int8' for name in SESSIONS))
"""Runtimes of exported models: inference on the CPU, from fp32, and their memory is not measured."""
