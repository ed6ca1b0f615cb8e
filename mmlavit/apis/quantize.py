"""Exported models in fewer bits: int8 for speed on CPUs, fp16 for size."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mmlavit.deployment.onnx import written_whole
from mmlavit.deployment.quantization import INT8_RUNTIMES, is_quantised, to_fp16, to_int8
from mmlavit.errors import UserError
from mmlavit.utils.local_files import expand_home, require_folder
from mmlavit.utils.spread import spread_evenly
from mmlavit_serve.exported import ExportedModel
from mmlavit_serve.predictor import find_images, read_image

PRECISIONS = ('int8', 'fp16')


def quantize_onnx(
    model: str | os.PathLike,
    out_file: str | os.PathLike,
    precision: str = 'int8',
    pictures: str | os.PathLike | None = None,
    number: int = 64,
    runtime: str = 'openvino',
) -> Path:
    """Write an exported model in fewer bits.

    int8 is static: the ranges of activations are those that a model takes on pictures. What is quantised depends on
    the runtime: see :func:`mmlavit.deployment.quantization.to_int8`.

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
    model, out_file = expand_home(model), expand_home(out_file)
    if precision not in PRECISIONS:
        raise UserError(f'precision is {precision!r}, expected one of {", ".join(PRECISIONS)}')
    if out_file.suffix != '.onnx' or out_file.is_dir() or out_file.resolve() == model.resolve():
        raise UserError(f'{out_file} is not another file ending in .onnx')
    if number < 1:
        raise UserError(f'the number of pictures is {number}, expected 1 or more')
    if runtime not in INT8_RUNTIMES:
        raise UserError(f'runtime is {runtime!r}, expected {" or ".join(INT8_RUNTIMES)}')
    if precision == 'int8' and pictures is None:
        raise UserError('int8 needs pictures such as the model will see, a folder or an image')
    try:
        import onnx  # noqa: F401

        # For every runtime: it checks the file, and prepares the pictures.
        exported = ExportedModel(model, 'onnxruntime', 'cpu', 0.0, None)
    except ImportError as error:
        raise UserError('this needs onnx and onnxruntime; `pip install onnx onnxruntime` installs them') from error
    if is_quantised(model):
        raise UserError(f'{model} is quantised already; expected a model as tools/deployment/export.py wrote it')
    require_folder(out_file.parent, '--out')
    with written_whole(out_file) as partial:
        if precision == 'fp16':
            to_fp16(model, partial)
        else:
            found = find_images(expand_home(pictures))
            chosen = [found[place] for place in spread_evenly(len(found), number)]
            to_int8(model, partial, _examples(exported, chosen), runtime)
    return out_file


def _examples(exported: ExportedModel, pictures: list[Path]) -> Iterator[dict[str, np.ndarray]]:
    """Yield inputs of the graph, one picture at a time."""
    for picture in pictures:
        image = read_image(picture)
        try:
            inputs = dict(images=exported.prepare(image)[None])
        except UserError as error:
            raise UserError(f'{picture}: {error}') from error
        if exported.task == 'segmentation':
            inputs['size'] = np.array(image.shape[:2], np.int64)
        yield inputs
