"""ONNX files in fewer bits, by the tools of the runtimes."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mmlavit.errors import UserError

INT8_RUNTIMES = ('openvino', 'onnxruntime')

_HEAVY = {'Conv', 'MatMul', 'Gemm'}  # what NNCF quantises
_SMALL = 1024  # elements from which a weight is worth fewer bits
_LARGEST_WEIGHT = 64  # what is larger is rounded by more than 0.03, and is no weight

Example = Mapping[str, np.ndarray]
"""Inputs of a graph by their names."""


def is_quantised(model: Path) -> bool:
    """Tell whether an ONNX file has values in int8 or fp16."""
    import onnx

    graph = onnx.load(model).graph
    small = any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in graph.initializer)
    return small or any(node.op_type == 'DequantizeLinear' for node in graph.node)


def to_int8(model: Path, out_file: Path, examples: Iterable[Example], runtime: str) -> None:
    """Quantise weights and activations to int8, with the ranges that the activations take on examples.

    What is quantised differs by runtime, as each is fast with other operators: for OpenVINO convolutions and matrix
    products, by NNCF; for ONNX Runtime convolutions, which most linears of an exported LaViT are, by its own tool.

    Args:
        model (Path): An ONNX file.
        out_file (Path): Where the result goes.
        examples (Iterable[Mapping]): Inputs, each looked at once.
        runtime (str): What will run it, 'openvino' or 'onnxruntime'.

    Raises:
        UserError: If a package is missing, or in none of the examples is anything found.
    """
    examples = list(examples)
    with _quiet():
        _require_masks(model, examples)
        (_by_nncf if runtime == 'openvino' else _by_onnxruntime)(model, out_file, examples)
        _keep_metadata(model, out_file)


def _require_masks(model: Path, examples: list[Example]) -> None:
    """Make sure that something is found, without which activations of a mask head have no ranges."""
    import onnx
    from onnxruntime import InferenceSession

    if all(output.name != 'masks' for output in onnx.load(model).graph.output):
        return
    session = InferenceSession(os.fspath(model))
    if not any(len(session.run(['scores'], dict(example))[0]) for example in examples):
        raise UserError(f'{model} finds nothing in the pictures; for a detector, name pictures with objects')


def _by_nncf(model: Path, out_file: Path, examples: list[Example]) -> None:
    try:
        import nncf
    except ImportError as error:
        raise UserError('int8 for OpenVINO needs nncf; `pip install nncf` installs it') from error
    import onnx

    graph = onnx.load(model)
    # Only what is heavy: sums, products and the arithmetic of boxes keep their digits.
    kept = sorted({node.op_type for node in graph.graph.node} - _HEAVY)
    scope = nncf.IgnoredScope(types=kept, validate=False)
    try:
        quantised = nncf.quantize(graph, nncf.Dataset(examples), subset_size=len(examples), ignored_scope=scope)
    except nncf.InternalError as error:
        raise UserError(
            f'NNCF cannot quantise {model} ({error}); for a detector, name pictures with objects that it finds'
        ) from error
    onnx.save(quantised, out_file)


def _by_onnxruntime(model: Path, out_file: Path, examples: list[Example]) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        """The examples, as onnxruntime asks for them."""

        def __init__(self) -> None:
            self.examples = iter(examples)

        def get_next(self) -> Example | None:
            return next(self.examples, None)

    quantize_static(
        onnx.load(model),  # of a file, it would write another one beside it
        os.fspath(out_file),
        Reader(),
        op_types_to_quantize=['Conv'],
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )


def to_fp16(model: Path, out_file: Path) -> None:
    """Store large weights as fp16, each behind a cast that runtimes fold away when they load the file.

    Args:
        model (Path): An ONNX file.
        out_file (Path): Where the result goes.
    """
    import onnx
    from onnx import helper, numpy_helper

    whole = onnx.load(model)
    graph = whole.graph
    casts = []
    for weight in graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype != np.float32 or values.size < _SMALL:
            continue
        if np.abs(values).max() > _LARGEST_WEIGHT:  # coordinates, as of anchors
            continue
        name = weight.name
        weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f'{name}_fp16'))
        casts.append(helper.make_node('Cast', [weight.name], [name], f'{name}_cast', to=onnx.TensorProto.FLOAT))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
    onnx.save(whole, out_file)


def _keep_metadata(model: Path, out_file: Path) -> None:
    """Copy what a model says about itself, which not every tool keeps."""
    import onnx

    source, target = onnx.load(model, load_external_data=False), onnx.load(out_file)
    del target.metadata_props[:]
    target.metadata_props.extend(source.metadata_props)
    onnx.save(target, out_file)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep quantisers from advice about graphs that are not the user's."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(before)
