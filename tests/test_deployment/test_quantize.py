"""Exported models in fewer bits, against those in fp32."""

import sys

import cv2
import numpy as np
import pytest
from exportable import make_image
from tool_runs import call_tool

from mmlavit.apis.quantize import quantize_onnx
from mmlavit.deployment.quantization import INT8_RUNTIMES, to_fp16, to_int8
from mmlavit.errors import UserError
from mmlavit_serve import Predictor

onnx = pytest.importorskip('onnx')
helper, TensorProto = onnx.helper, onnx.TensorProto


@pytest.fixture
def pictures(tmp_path):
    """A folder of images."""
    folder = tmp_path / 'pictures'
    folder.mkdir()
    for seed in range(6):
        cv2.imwrite(str(folder / f'{seed}.png'), make_image((96, 128), seed))
    return folder


def metadata(file):
    return {entry.key: entry.value for entry in onnx.load(file).metadata_props}


@pytest.mark.parametrize('runtime', ['onnxruntime', 'openvino'])
def test_int8_classifier(runtime, exported, pictures, tmp_path):
    pytest.importorskip('nncf' if runtime == 'openvino' else runtime)
    _, _, file = exported('classifier')
    small = quantize_onnx(file, tmp_path / 'int8.onnx', pictures=pictures, number=4, runtime=runtime)
    assert small.stat().st_size < file.stat().st_size
    assert metadata(small) == metadata(file)
    fp32, int8 = Predictor(file, runtime=runtime), Predictor(small, runtime=runtime)
    images = [make_image((96, 128), seed) for seed in range(10, 16)]
    expected, found = (np.stack([model.predict(image).scores for image in images]) for model in (fp32, int8))
    assert not np.array_equal(found, expected)  # it is quantised
    assert np.abs(found - expected).max() < 0.2 * np.ptp(expected)


@pytest.mark.parametrize('runtime', ['onnxruntime', 'openvino'])
def test_what_is_quantised(runtime, exported, pictures, tmp_path):
    """What goes into convolutions and, for OpenVINO, matrix products; what comes out of convolutions."""
    pytest.importorskip('nncf' if runtime == 'openvino' else runtime)
    _, _, file = exported('retinanet')
    graph = onnx.load(quantize_onnx(file, tmp_path / 'int8.onnx', pictures=pictures, number=2, runtime=runtime)).graph
    maker = {name: node for node in graph.node for name in node.output}
    readers = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    heavy = {'Conv'} if runtime == 'onnxruntime' else {'Conv', 'MatMul', 'Gemm'}
    # What only moves values may stand between.
    moves = {'Reshape', 'Transpose', 'Slice', 'Unsqueeze', 'Concat', 'Split', 'DequantizeLinear'}

    def is_read(name):
        return any(node.op_type in heavy or node.op_type in moves and is_read(node.output[0]) for node in readers[name])

    quantised = [node for node in graph.node if node.op_type == 'QuantizeLinear']
    assert len(quantised) > 10
    for node in quantised:
        source = maker.get(node.input[0])
        assert is_read(node.output[0]) or source is not None and source.op_type == 'Conv', node


@pytest.mark.parametrize('kind', ['classifier', 'upernet'])
def test_fp16(kind, exported, tmp_path):
    _, _, file = exported(kind)
    half = quantize_onnx(file, tmp_path / 'fp16.onnx', 'fp16')
    assert half.stat().st_size < 0.8 * file.stat().st_size
    assert metadata(half) == metadata(file)
    image = make_image((96, 128))
    expected, found = (Predictor(path).predict(image) for path in (file, half))
    if kind == 'classifier':
        assert not np.array_equal(found.scores, expected.scores)
        np.testing.assert_allclose(found.scores, expected.scores, atol=5e-3)
    else:
        assert (found.labels == expected.labels).mean() > 0.98


def test_fp16_leaves_coordinates_alone(tmp_path):
    """As those of anchors, which the exporter makes constants for one size."""
    from onnx import helper, numpy_helper

    anchors, weight = np.arange(2048, dtype=np.float32), np.linspace(-2, 2, 2048, dtype=np.float32)
    nodes = [helper.make_node('Add', ['x', 'anchors'], ['y']), helper.make_node('Mul', ['y', 'weight'], ['z'])]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2048]) for name in ('x', 'z')]
    constants = [numpy_helper.from_array(anchors, 'anchors'), numpy_helper.from_array(weight, 'weight')]
    model = helper.make_model(helper.make_graph(nodes, 'graph', ends[:1], ends[1:], constants))
    onnx.save(model, tmp_path / 'model.onnx')
    to_fp16(tmp_path / 'model.onnx', tmp_path / 'half.onnx')
    kept = {tensor.name: tensor.data_type for tensor in onnx.load(tmp_path / 'half.onnx').graph.initializer}
    assert kept == dict(anchors=onnx.TensorProto.FLOAT, weight_fp16=onnx.TensorProto.FLOAT16)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(out_file='a.txt'), 'is not another file ending in .onnx'),
        (dict(precision='int4'), "precision is 'int4', expected one of int8, fp16"),
        (dict(), 'int8 needs pictures such as the model will see'),
        (dict(pictures='nowhere'), 'nowhere does not exist; expected an image or a folder'),
        (dict(pictures='.', number=0), 'the number of pictures is 0, expected 1 or more'),
        (dict(pictures='.', runtime='torch'), "runtime is 'torch', expected openvino or onnxruntime"),
    ],
)
def test_mistakes(options, message, exported, tmp_path):
    _, _, file = exported('classifier')
    with pytest.raises(UserError, match=message):
        quantize_onnx(file, **dict(dict(out_file=tmp_path / 'a.onnx'), **options))
    assert not (tmp_path / 'a.onnx').exists()


def test_twice(exported, pictures, tmp_path):
    _, _, file = exported('classifier')
    small = quantize_onnx(file, tmp_path / 'a.onnx', pictures=pictures, number=1, runtime='onnxruntime')
    with pytest.raises(UserError, match='is quantised already'):
        quantize_onnx(small, tmp_path / 'b.onnx', pictures=pictures, runtime='onnxruntime')
    half = quantize_onnx(file, tmp_path / 'half.onnx', precision='fp16')
    with pytest.raises(UserError, match='is quantised already'):
        quantize_onnx(half, tmp_path / 'b.onnx', pictures=pictures, runtime='onnxruntime')


def test_nothing_to_calibrate_with(exported, pictures, tmp_path, monkeypatch):
    """As NNCF ends where no picture reaches a part of a detector."""
    nncf = pytest.importorskip('nncf')

    def fail(*args, **kwargs):
        raise nncf.InternalError('Statistics were not collected')

    monkeypatch.setattr(nncf, 'quantize', fail)
    with pytest.raises(UserError, match='name pictures with objects that it finds'):
        quantize_onnx(exported('classifier')[2], tmp_path / 'a.onnx', pictures=pictures)
    assert not list(tmp_path.glob('*.onnx'))


@pytest.mark.parametrize('runtime', INT8_RUNTIMES)
def test_no_masks_to_calibrate_with(runtime, tmp_path):
    """A mask head that never ran has no ranges."""
    empty = dict(scores=[0], masks=[0, 28, 28])
    nodes = [
        helper.make_node('Constant', [], [name], value=helper.make_tensor(name, TensorProto.FLOAT, shape, []))
        for name, shape in empty.items()
    ]
    image = helper.make_tensor_value_info('images', TensorProto.UINT8, [1, 8, 8, 3])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in empty.items()]
    graph = helper.make_graph(nodes, 'detector', [image], outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=10), tmp_path / 'a.onnx')
    with pytest.raises(UserError, match='finds nothing in the pictures; for a detector, name pictures with objects'):
        to_int8(tmp_path / 'a.onnx', tmp_path / 'b.onnx', [dict(images=np.zeros((1, 8, 8, 3), np.uint8))], runtime)


def test_files_beside_the_model(exported, pictures, tmp_path):
    """The tool of ONNX Runtime would write one of this name and remove it."""
    model, other = tmp_path / 'model.onnx', tmp_path / 'model-inferred.onnx'
    model.write_bytes(exported('classifier')[2].read_bytes())
    other.write_text('mine')
    quantize_onnx(model, tmp_path / 'out.onnx', pictures=pictures, number=1, runtime='onnxruntime')
    assert other.read_text() == 'mine'


def test_picture_that_cannot_be_taken(exported, tmp_path):
    cv2.imwrite(str(tmp_path / 'thin.png'), make_image((1, 4000)))
    with pytest.raises(UserError, match='thin.png: '):
        quantize_onnx(exported('classifier')[2], tmp_path / 'a.onnx', pictures=tmp_path, runtime='onnxruntime')


def test_missing_package(exported, pictures, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'nncf', None)
    with pytest.raises(UserError, match='pip install nncf'):
        quantize_onnx(exported('classifier')[2], tmp_path / 'a.onnx', pictures=pictures)


def test_tool(exported, tmp_path, monkeypatch, capsys):
    file, out = str(exported('classifier')[2]), tmp_path / 'out/fp16.onnx'
    call_tool(monkeypatch, 'deployment/quantize.py', file, '--precision', 'fp16', '--out', out)
    assert out.is_file() and f'{file} -> {out} (' in capsys.readouterr().out
