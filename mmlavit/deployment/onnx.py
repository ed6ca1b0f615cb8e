"""From torch to ONNX, with torch's own exporter."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from mmlavit.errors import UserError
from mmlavit.models.onnx_attention import tracing_for_onnx

OPSETS = range(18, 21)
"""Versions of ONNX's operators that can be chosen. From 20 on GELU is one of them."""

_FOLDED = 1 << 24  # elements of the largest constants that are computed in advance


def write_onnx(
    model: nn.Module,
    arguments: Mapping[str, Tensor],
    out_file: Path,
    outputs: Sequence[str] | None = None,
    dynamic_shapes: Mapping[str, Any] | None = None,
    opset: int = OPSETS[-1],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Export a model in evaluation mode as an ONNX file, which is whole or not there.

    Args:
        model (nn.Module): The model; its ``forward`` takes the arguments by name.
        arguments (Mapping[str, Tensor]): An example of each.
        out_file (Path): The file.
        outputs (Sequence[str], optional): Names of the outputs.
        dynamic_shapes (Mapping, optional): As for ``torch.export.export``; None: all sizes are the example's.
        opset (int): Version of ONNX's operators, one of :data:`OPSETS`.
        metadata (Mapping[str, str], optional): Texts to keep in the file.

    Raises:
        UserError: If onnx or onnxscript is missing.
    """
    try:
        import onnxscript.optimizer
    except ImportError as error:
        raise UserError('exporting needs onnx and onnxscript; `pip install onnx onnxscript` installs them') from error
    logger = logging.getLogger('torch.onnx')
    level = logger.level
    logger.setLevel(logging.ERROR)  # the exporter's remarks about its own operators
    try:
        with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
            warnings.simplefilter('ignore')
            with tracing_for_onnx():
                program = torch.export.export(
                    model,
                    (),
                    # Not made in inference mode, which the exporter cannot trace.
                    {name: example.clone() for name, example in arguments.items()},
                    dynamic_shapes=dynamic_shapes,
                    prefer_deferred_runtime_asserts_over_guards=True,
                )
            exported = torch.onnx.export(
                program,
                opset_version=opset,
                dynamo=True,
                input_names=list(arguments),
                output_names=outputs,
                custom_translation_table={torch.ops.mmlavit.attend_in_pieces.default: _attend_in_pieces},
                optimize=False,
                verbose=False,
            )
            # As the exporter would, but for the limits: weights too get the form that their operators take, which
            # quantisation looks for.
            onnxscript.optimizer.optimize(exported.model, input_size_limit=_FOLDED, output_size_limit=_FOLDED)
    finally:
        logger.setLevel(level)
    _clean(exported.model.graph, dynamic_shapes or {})
    exported.model.metadata_props.update(metadata or {})
    out_file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(out_file) as partial:
        exported.save(os.fspath(partial))
        if len(os.listdir(partial.parent)) > 1:  # from 1.5 GB on, torch puts weights into a file beside it
            raise UserError(f'{out_file} would have too many weights for one file; expected a model below 1.5 GB')


@contextmanager
def written_whole(out_file: Path) -> Iterator[Path]:
    """Have a model written beside its place, and moved there when it is whole.

    Args:
        out_file (Path): Its place, ending in .onnx.

    Yields:
        Path: The file to write, which is removed after an error.
    """
    # A folder of its own: another process may write the same model, and what is saved has the mode of any new file.
    with TemporaryDirectory(prefix='.partial-', dir=out_file.parent) as folder:
        partial = Path(folder, out_file.name)
        yield partial
        os.replace(partial, out_file)


def _attend_in_pieces(query: Any, key: Any, value: Any, pieces: int) -> Any:
    """Write :func:`mmlavit.models.onnx_attention.attend_in_pieces` to a graph."""
    from onnxscript import opset18 as op

    key = op.Transpose(key, perm=[0, 1, 3, 2])
    queries = op.Split(query, axis=2, num_outputs=pieces) if pieces > 1 else [query]
    found = [op.MatMul(op.Softmax(op.MatMul(some, key), axis=-1), value) for some in queries]
    return op.Concat(*found, axis=2) if pieces > 1 else found[0]


def _clean(graph: Any, dynamic_shapes: Mapping[str, Any]) -> None:
    """Call sizes by the names of ``dynamic_shapes``, and drop what the exporter says about its own work.

    Args:
        graph (onnx_ir.Graph): Graph of an exported model; it is changed.
        dynamic_shapes (Mapping): As for ``torch.export.export``.
    """
    names = {}
    for value in graph.inputs:
        for axis, dim in (dynamic_shapes.get(value.name) or {}).items():
            names[str(value.shape[axis])] = dim.__name__
    graph.metadata_props.clear()
    values = list(graph.inputs)
    for node in graph.all_nodes():
        node.metadata_props.clear()  # where in the code it comes from, with the paths of this machine
        values.extend(node.outputs)
    for value in values:
        value.metadata_props.clear()
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int) and size.value is not None:  # a symbol, not an unknown size
                value.shape[axis] = re.sub(r'\w+', lambda match: names.get(match[0], match[0]), size.value)
