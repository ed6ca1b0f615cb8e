"""What runs a backbone: torch, in eager mode or compiled, or a runtime for exported models."""

from __future__ import annotations

import io
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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


class _Exported(ABC):
    """A model exported to ONNX for the size of the images it is given; a new size is exported when it comes.

    Args:
        model (nn.Module): Model in evaluation mode.
        threads (int): CPU threads.
    """

    def __init__(self, model: nn.Module, threads: int) -> None:
        self.model, self.threads = model, threads
        self.sessions = {}

    def __call__(self, images: Tensor) -> list[np.ndarray]:
        """Run the model on images (B, C, H, W) on the CPU."""
        if images.shape not in self.sessions:
            self.sessions[images.shape] = self.load(_to_onnx(self.model, images))
        return self.sessions[images.shape](images.numpy())

    @abstractmethod
    def load(self, model: bytes) -> Callable[[np.ndarray], list[np.ndarray]]:
        """Make an ONNX model ready to run."""


class _OnnxRuntime(_Exported):
    """ONNX Runtime on its CPU provider, all optimizations of the graph on, as by default."""

    def load(self, model: bytes) -> Callable[[np.ndarray], list[np.ndarray]]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        session = onnxruntime.InferenceSession(model, options, ['CPUExecutionProvider'])
        return lambda images: session.run(None, {'images': images})


class _OpenVino(_Exported):
    """OpenVINO on the CPU, for latency, in float32 also where the processor has bfloat16."""

    def load(self, model: bytes) -> Callable[[np.ndarray], list[np.ndarray]]:
        import openvino

        hints = {'PERFORMANCE_HINT': 'LATENCY', 'INFERENCE_PRECISION_HINT': 'f32'}
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(model), 'CPU', {**hints, 'INFERENCE_NUM_THREADS': self.threads})
        request = compiled.create_infer_request()
        return lambda images: list(request.infer({'images': images}, share_outputs=True).values())


def _to_onnx(model: nn.Module, images: Tensor) -> bytes:
    """Export a model for images of one size."""
    logging.getLogger('torch.onnx').setLevel(logging.ERROR)
    content = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter('ignore')
        images = images.clone()  # not one of inference mode
        program = torch.onnx.export(
            model, (images,), dynamo=True, opset_version=20, input_names=['images'], verbose=False
        )
        program.save(content)
    return content.getvalue()


RUNTIMES: Mapping[str, Callable[[nn.Module, int], Runnable]] = {
    'eager': lambda model, threads: model,
    'channels_last': lay_out_channels_last,
    'compile': compile_model,
    'onnxruntime': _OnnxRuntime,
    'openvino': _OpenVino,
}
"""Make of a model what is measured, with a number of CPU threads."""

TITLES = {
    'channels_last': 'channels-last maps',
    'compile': 'torch.compile',
    'onnxruntime': 'ONNX Runtime',
    'openvino': 'OpenVINO',
}
"""What tables call them."""

EXPORTED = ('onnxruntime', 'openvino')
"""Runtimes of exported models: inference in fp32 on the CPU, and their memory is not measured."""
