"""Exported models in fewer bits: int8 for speed on CPUs, fp16 for size."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mmlavit.errors import UserError
from mmlavit_serve.exported import ExportedModel
from mmlavit_serve.predictor import find_images, read_image

PRECISIONS = ('int8', 'fp16')

_HEAVY = {'Conv', 'MatMul', 'Gemm'}  # what NNCF quantises
_SMALL = 1024  # elements from which a weight is worth fewer bits


def quantize_onnx(
    model: str | os.PathLike,
    out_file: str | os.PathLike,
    precision: str = 'int8',
    pictures: str | os.PathLike | None = None,
    number: int = 64,
    runtime: str = 'openvino',
) -> Path:
    """Write an exported model in fewer bits.

    int8 is static: the ranges of activations are those that a model takes on pictures. What is quantised differs by
    runtime, as each is fast with other operators:

    * openvino: convolutions and linears, by NNCF.
    * onnxruntime: convolutions, which most linears of an exported LaViT are, by onnxruntime's own quantisation.

    fp16 is how the weights are stored: the file is half as large, and what runs it computes as before.

    Args:
        model (str or Path): A model that :func:`~mmlavit.apis.export.export_onnx` wrote.
        out_file (str or Path): The file, ending in .onnx. It is used like the model.
        precision (str): 'int8' or 'fp16'.
        pictures (str or Path, optional): For int8, an image or a folder of images such as the model will see.
        number (int): How many of them are looked at, spread evenly.
        runtime (str): For int8, what will run it: 'openvino' or 'onnxruntime'.

    Returns:
        Path: The file.

    Raises:
        UserError: If a package or the pictures are missing, or an argument is out of its range.
    """
    model, out_file = Path(model), Path(out_file)
    if precision not in PRECISIONS:
        raise UserError(f'precision is {precision!r}, expected one of {", ".join(PRECISIONS)}')
    if out_file.suffix != '.onnx' or out_file.resolve() == model.resolve():
        raise UserError(f'{out_file} is not another file ending in .onnx')
    if number < 1:
        raise UserError(f'the number of pictures is {number}, expected 1 or more')
    quantize = {'openvino': _by_nncf, 'onnxruntime': _by_onnxruntime}.get(runtime)
    if quantize is None:
        raise UserError(f'runtime is {runtime!r}, expected openvino or onnxruntime')
    if precision == 'int8' and pictures is None:
        raise UserError('int8 needs pictures such as the model will see, a folder or an image')
    try:
        import onnx  # noqa: F401

        # Also for OpenVINO: the test of the file is the session that the examples come from.
        exported = ExportedModel(model, 'onnxruntime', 'cpu', 0.0, None)
    except ImportError as error:
        raise UserError('this needs onnx and onnxruntime; `pip install onnx onnxruntime` installs them') from error
    out_file.parent.mkdir(parents=True, exist_ok=True)
    partial = out_file.with_suffix('.partial.onnx')
    with _quiet():
        if precision == 'fp16':
            _to_fp16(model, partial)
        else:
            found = find_images(Path(pictures).expanduser())
            chosen = [found[index] for index in _spread(len(found), number)]
            quantize(model, partial, exported, chosen)
        _keep_metadata(model, partial)
    os.replace(partial, out_file)
    return out_file


def _examples(exported: ExportedModel, pictures: list[Path]) -> Iterator[dict[str, np.ndarray]]:
    """Yield inputs of the graph, one picture at a time."""
    for picture in pictures:
        image = read_image(picture)
        inputs = dict(images=exported.prepare(image)[None])
        if exported.task == 'segmentation':
            inputs['size'] = np.array(image.shape[:2], np.int64)
        yield inputs


def _spread(length: int, number: int) -> list[int]:
    """Choose at most ``number`` of ``length`` places, evenly."""
    return sorted({round(place) for place in np.linspace(0, length - 1, min(length, number))})


def _by_nncf(model: Path, out_file: Path, exported: ExportedModel, pictures: list[Path]) -> None:
    try:
        import nncf
    except ImportError as error:
        raise UserError('int8 for OpenVINO needs nncf; `pip install nncf` installs it') from error
    import onnx

    graph = onnx.load(model)
    # Only what is heavy: sums, products and the arithmetic of boxes keep their digits.
    kept = sorted({node.op_type for node in graph.graph.node} - _HEAVY)
    data = nncf.Dataset(list(_examples(exported, pictures)))
    scope = nncf.IgnoredScope(types=kept, validate=False)
    onnx.save(nncf.quantize(graph, data, subset_size=len(pictures), ignored_scope=scope), out_file)


def _by_onnxruntime(model: Path, out_file: Path, exported: ExportedModel, pictures: list[Path]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        """The examples, as onnxruntime asks for them."""

        def __init__(self) -> None:
            self.examples = _examples(exported, pictures)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.examples, None)

    quantize_static(
        os.fspath(model),
        os.fspath(out_file),
        Reader(),
        op_types_to_quantize=['Conv'],
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )


def _to_fp16(model: Path, out_file: Path) -> None:
    """Store large weights as fp16, each behind a cast that runtimes fold away when they load the file."""
    import onnx
    from onnx import helper, numpy_helper

    whole = onnx.load(model)
    graph = whole.graph
    casts = []
    for weight in graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype != np.float32 or values.size < _SMALL or np.abs(values).max() > np.finfo(np.float16).max:
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
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(logging.NOTSET)
