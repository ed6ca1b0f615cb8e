"""Runtimes that compute an exported graph."""

from __future__ import annotations

import json
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UserError, is_file

METADATA = 'mmlavit'
"""Key of the metadata in a model file."""


class Session(ABC):
    """A model file, loaded by a runtime.

    Args:
        path (Path): The file.
        threads (int, optional): Threads of the CPU; None: as the runtime takes them.
        device (str): 'cpu', or what the runtime calls another device.
    """

    input_shapes: Mapping[str, Sequence[int | str]]

    def __init__(self, path: Path, threads: int | None, device: str) -> None:
        if not is_file(path):
            raise UserError(f'{path} does not exist; expected a model that tools/deployment/export.py wrote')
        self.path = path
        self._metadata = self._load(path, threads, device)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the file says about itself."""
        if self._metadata is None:
            raise UserError(
                f'{self.path} is not a model of mmlavit; expected one that tools/deployment/export.py wrote'
            )
        return json.loads(self._metadata)

    @abstractmethod
    def _load(self, path: Path, threads: int | None, device: str) -> str | None:
        """Load the file; return the text of its metadata, if it has any."""

    @abstractmethod
    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute the outputs, by their names. Several threads may do so at once."""

    def _unreadable(self, error: Exception) -> UserError:
        reason = ' '.join(str(error).split())[:160]
        return UserError(f'{self.path} cannot be read as a model ({reason}); is the file complete? export it again')


class OnnxRuntime(Session):
    """ONNX Runtime; arguments as for :class:`Session`. Devices: 'cpu' and 'cuda:0'."""

    def _load(self, path: Path, threads: int | None, device: str) -> str | None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError('onnxruntime is not installed; `pip install onnxruntime` installs it') from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        if threads:
            options.intra_op_num_threads = threads
        name, _, number = device.partition(':')
        provider = {'cpu': 'CPUExecutionProvider', 'cuda': 'CUDAExecutionProvider'}.get(name)
        if provider not in onnxruntime.get_available_providers():
            known = ', '.join(onnxruntime.get_available_providers())
            raise UserError(f'onnxruntime cannot use device {device}; it has {known}. For CUDA: onnxruntime-gpu')
        if not (number or '0').isdigit():
            raise UserError(f'device is {device}, expected cpu or cuda:0')
        providers = [(provider, dict(device_id=number or '0'))] if name == 'cuda' else [provider]
        try:
            self.session = onnxruntime.InferenceSession(os.fspath(path), options, providers)
        except Exception as error:  # its classes differ between versions
            raise self._unreadable(error) from error
        if self.session.get_providers()[0] != provider:  # where its libraries are missing, it takes the CPU
            raise UserError(
                f'onnxruntime cannot use device {device}: it has no {provider} here; are CUDA and cuDNN installed, in '
                'the versions that this onnxruntime-gpu asks for? Or take device cpu'
            )
        self.input_shapes = {node.name: node.shape for node in self.session.get_inputs()}
        self.outputs = [node.name for node in self.session.get_outputs()]
        return self.session.get_modelmeta().custom_metadata_map.get(METADATA)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute the outputs, by their names."""
        return dict(zip(self.outputs, self.session.run(self.outputs, dict(inputs)), strict=True))


class OpenVino(Session):
    """OpenVINO; arguments as for :class:`Session`. Devices: those of OpenVINO, such as 'cpu' and 'gpu'."""

    def _load(self, path: Path, threads: int | None, device: str) -> str | None:
        try:
            import openvino
        except ImportError as error:
            raise UserError('openvino is not installed; `pip install openvino` installs it') from error
        core = openvino.Core()
        # Where a processor has bfloat16, OpenVINO would use it for a model in float32.
        config = {'INFERENCE_PRECISION_HINT': 'f32', 'PERFORMANCE_HINT': 'LATENCY'}
        if device.lower().startswith('cpu'):
            # It keeps what it prepares for each new size of an image, 5,000 pieces if it is not told otherwise.
            config['CPU_RUNTIME_CACHE_CAPACITY'] = 256
        if threads:
            config['INFERENCE_NUM_THREADS'] = threads
        try:
            model = core.read_model(os.fspath(path))
        except Exception as error:
            raise self._unreadable(error) from error
        try:
            self.model = core.compile_model(model, device.upper(), config)
        except Exception as error:
            reason = ' '.join(str(error).split())[:160]
            raise UserError(
                f'OpenVINO cannot run {path} on {device} ({reason}); it has {core.available_devices}'
            ) from error
        self.requests = threading.local()  # one takes one image at a time
        self.input_shapes = {
            node.get_any_name(): [length.get_length() if length.is_static else '?' for length in node.partial_shape]
            for node in self.model.inputs
        }
        self.outputs = [node.get_any_name() for node in self.model.outputs]
        path = ['framework', METADATA]  # where OpenVINO keeps the metadata of an ONNX file
        return model.get_rt_info(path).astype(str) if model.has_rt_info(path) else None

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute the outputs, by their names."""
        if not hasattr(self.requests, 'own'):
            self.requests.own = self.model.create_infer_request()
        found = self.requests.own.infer(dict(inputs))
        return {name: found[name].copy() for name in self.outputs}


RUNTIMES = {'onnxruntime': OnnxRuntime, 'openvino': OpenVino}
"""Runtimes of exported models, by name."""
