"""Exported models against the toolboxes, from images of odd sizes to results, in both runtimes."""

import json
import subprocess
import sys
import textwrap

import cv2
import numpy as np
import pytest
import torch
from documents import code_blocks
from exportable import ARCH, KINDS, ROOT, build, make_config, make_image, save_random
from mmcv.ops import nms
from mmengine.registry import DefaultScope
from small_vit import DIM, VIT
from tool_runs import call_tool

from mmlavit.apis.export import export_onnx
from mmlavit.deployment.detectors import iou_threshold_of
from mmlavit.deployment.onnx import written_whole
from mmlavit.errors import UserError
from mmlavit_serve import Predictor
from mmlavit_serve.resizing import apply

onnx = pytest.importorskip('onnx')
RUNTIMES = ['onnxruntime', 'openvino']
EXPORTED = [kind for kind in KINDS if kind != 'mask_rcnn']  # a cascade has all that it has, and an export takes seconds
SIZES = [(96, 128), (150, 211), (320, 160)]


@pytest.mark.parametrize('kind', EXPORTED)
@pytest.mark.parametrize('runtime', RUNTIMES)
def test_as_torch(kind, runtime, exported):
    pytest.importorskip(runtime)
    cfg, checkpoint, file = exported(kind)
    reference = Predictor(cfg, checkpoint, score_thr=0.06)
    predictor = Predictor(file, runtime=runtime, score_thr=0.06)
    for size in SIZES:
        image = make_image(size)
        expected, found = reference.predict(image), predictor.predict(image)
        assert type(found) is type(expected) and found.shape == size
        assert list(found.classes) == list(expected.classes)
        if cfg.default_scope == 'mmpretrain':
            np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
        elif cfg.default_scope == 'mmseg':
            assert (found.labels == expected.labels).mean() > 0.998
            assert [list(colour) for colour in found.palette] == [list(colour) for colour in expected.palette]
        else:
            assert len(expected) > 3
            check_detections(found, expected)


def check_detections(found, expected):
    """The same objects, but for those that rounding decides: at the threshold, or of equal scores."""
    matched = 0
    for i in range(len(expected)):
        same = (np.abs(found.boxes - expected.boxes[i]).max(axis=1) < 0.05) & (found.labels == expected.labels[i])
        same &= np.abs(found.scores - expected.scores[i]) < 1e-3
        if not same.any():
            continue
        matched += 1
        if expected.masks is not None:
            ours = found.masks[np.flatnonzero(same)[0]]
            assert (ours != expected.masks[i]).sum() <= 0.05 * expected.masks[i].sum() + 5
    assert matched >= 0.95 * len(expected) and abs(len(found) - len(expected)) <= 0.05 * len(expected)


@pytest.mark.parametrize('kind', EXPORTED)
def test_graph(kind, exported):
    """Standard operators only, inputs and outputs by name, and what a user of the file has to know."""
    cfg, _, file = exported(kind)
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} <= {'', 'ai.onnx'}
    outputs = {
        'mmpretrain': ['scores'],
        'mmseg': ['labels'],
        'mmdet': ['boxes', 'scores', 'labels', *(['masks'] if kind != 'retinanet' else [])],
    }[cfg.default_scope]
    assert [value.name for value in model.graph.output] == outputs
    assert [value.name for value in model.graph.input] == [
        'images',
        *(['size'] if cfg.default_scope == 'mmseg' else []),
    ]
    sizes = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == [1 if cfg.default_scope == 'mmdet' else 'batch', 'height', 'width', 3]
    assert model.opset_import[0].version == 20
    metadata = json.loads({entry.key: entry.value for entry in model.metadata_props}['mmlavit'])
    assert metadata['classes'][1] == '1' or kind == 'upernet'
    assert metadata['mean'] == pytest.approx([123.675, 116.28, 103.53])
    assert len(metadata['checkpoint_sha256']) == 64
    assert str(ROOT).encode() not in file.read_bytes()  # nobody's paths


def test_batch(exported):
    """Images of several sizes, some of them computed together, give what each alone does."""
    for kind in ('classifier', 'upernet'):
        _, _, file = exported(kind)
        predictor = Predictor(file)
        images = [make_image(size, seed) for seed, size in enumerate([(96, 128), (64, 64), (96, 128), (70, 90)])]
        together = [result for _, result in predictor.predict_each(images, batch_size=3)]
        for image, result in zip(images, together):
            alone = predictor.predict(image)
            assert result.shape == alone.shape == image.shape[:2]
            if kind == 'classifier':
                np.testing.assert_allclose(result.scores, alone.scores, rtol=1e-4, atol=1e-6)
            else:
                assert (result.labels == alone.labels).mean() > 0.999


@pytest.mark.parametrize(
    'options',
    [dict(key_reduction='pool'), dict(attention_residual=False, num_va_layers=ARCH['depths'])],
    ids=['pooled keys', 'vanilla twin'],
)
def test_other_forms_of_the_backbone(options, tmp_path):
    """Two stages of it, at other sizes than that of the export."""
    cfg = make_config('classifier')
    cfg.model.backbone.update(out_indices=(1,), **options)
    cfg.model.head.in_channels = ARCH['embed_dims'][1]
    save_random(cfg, tmp_path / 'random.pth')
    file = export_onnx(cfg, tmp_path / 'random.pth', tmp_path / 'model.onnx')
    for size in SIZES:
        image = make_image(size)
        found, expected = (
            Predictor(*model).predict(image).scores for model in ((file,), (cfg, str(tmp_path / 'random.pth')))
        )
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('runtime', RUNTIMES)
def test_as_many_threads_as_the_runtime_takes(runtime, exported):
    pytest.importorskip(runtime)
    image = make_image((96, 128))
    found, expected = (Predictor(exported('upernet')[2], runtime=runtime, threads=n).predict(image) for n in (None, 1))
    assert (found.labels == expected.labels).mean() > 0.999


def test_images_that_are_computed_together(exported):
    """Of a classifier, those of one size after resizing; memory is asked for as many."""
    resize = dict(type='Resize', scale=[128, 96], scale_factor=None, keep_ratio=False)
    resize.update(interpolation='bilinear', backend='cv2')
    predictor = Predictor(exported('classifier')[2])
    predictor.model.transforms = [resize]
    images = [make_image((90, width)) for width in (120, 121, 122)]
    run, batches = predictor.model.session.run, []
    predictor.model.session.run = lambda inputs: batches.append(len(inputs['images'])) or run(inputs)
    found = [result for _, result in predictor.predict_each(images, batch_size=3)]
    assert batches == [3]
    for image, result in zip(images, found, strict=True):
        np.testing.assert_allclose(result.scores, predictor.predict(image).scores, atol=1e-6)
    shapes = [image.shape[:2] for image in images]
    assert predictor.model.count_together(shapes[0], shapes) == 3
    segmentor = Predictor(exported('upernet')[2]).model  # which resizes maps to one size
    assert segmentor.count_together(shapes[0], [*shapes, shapes[0]]) == 2
    assert Predictor(exported('retinanet')[2]).model.count_together(shapes[0], shapes) == 1


def test_message_names_the_file(exported, tmp_path):
    predictor = Predictor(exported('classifier')[2])
    for name, size in dict(good=(90, 120), thin=(1, 4000)).items():
        cv2.imwrite(str(tmp_path / f'{name}.png'), make_image(size))
    files = [tmp_path / 'good.png', tmp_path / 'thin.png']
    for paths in (files, files[1:]):
        with pytest.raises(UserError, match='thin.png: '):
            list(predictor.predict_each(paths, batch_size=2))


@pytest.mark.parametrize('picture', [None, 3, 'x' * 300 + '.png'])
def test_what_is_no_image(picture, exported):
    predictor = Predictor(exported('classifier')[2])
    [(image, error)] = predictor.predict_each([picture], keep_going=True)
    assert image is None and isinstance(error, UserError)
    with pytest.raises(UserError):
        predictor.predict(picture)


def test_model_made_for_one_size(tmp_path):
    """Which fails at the sizes at which the memory of others is measured."""
    cfg = make_config('classifier')
    arch = dict(embed_dims=32, num_layers=1, tokens_mlp_dims=32, channels_mlp_dims=32)
    cfg.model.backbone = dict(type='MlpMixer', arch=arch, img_size=64, patch_size=16)
    cfg.model.neck = dict(type='GlobalAveragePooling', dim=1)
    cfg.model.head.in_channels = 32
    save_random(cfg, tmp_path / 'a.pth')
    image = make_image((64, 64))
    expected = Predictor(cfg, str(tmp_path / 'a.pth'), memory_limit=1e6).predict(image)
    file = export_onnx(cfg, tmp_path / 'a.pth', tmp_path / 'a.onnx', shape=(64, 64))
    np.testing.assert_allclose(Predictor(file).predict(image).scores, expected.scores, atol=1e-5)


def test_coarse_levels_and_arrays_of_colours(tmp_path):
    """A level of stride 256; names and colours as arrays."""
    cfg = make_config('retinanet')
    cfg.model.backbone = dict(type='FourConvolutions')
    cfg.model.neck.num_outs = 6
    sizes = dict(strides=[8, 16, 32, 64, 128, 256], base_sizes=[26, 38, 54, 70, 90, 120])
    cfg.model.bbox_head.anchor_generator.update(sizes)
    save_random(cfg, tmp_path / 'a.pth')
    weights = torch.load(tmp_path / 'a.pth', weights_only=False)
    meta = weights['meta']['dataset_meta'] = dict(
        classes=np.array(list('0123456789')), palette=np.eye(10, 3, dtype=int)
    )
    torch.save(weights, tmp_path / 'a.pth')
    model = Predictor(export_onnx(cfg, tmp_path / 'a.pth', tmp_path / 'a.onnx')).model
    assert model.sides[0] == 257
    assert model.classes == list(meta['classes']) and model.palette == meta['palette'].tolist()


def test_fixed_size(tmp_path):
    cfg, checkpoint = make_config('retinanet'), tmp_path / 'retinanet.pth'
    cfg.model.backbone = dict(type='FourConvolutions')  # the anchors are what is constant
    save_random(cfg, checkpoint)
    with DefaultScope.overwrite_default_scope('mmseg'):  # as where a segmentor is in use
        file = export_onnx(cfg, checkpoint, tmp_path / 'fixed.onnx', shape=(97, 120))
        assert DefaultScope.get_current_instance().scope_name == 'mmseg'
    image = make_image((97, 120))
    check_detections(
        Predictor(file, score_thr=0.06).predict(image), Predictor(cfg, checkpoint, score_thr=0.06).predict(image)
    )
    with pytest.raises(UserError, match='takes images of 97x120 only, but this one is 64x64'):
        Predictor(file).predict(make_image((64, 64)))


@pytest.mark.parametrize('opset', [18, 19])
def test_earlier_opsets(opset, tmp_path):
    cfg, checkpoint = make_config('retinanet'), tmp_path / 'retinanet.pth'
    cfg.model.backbone = dict(type='FourConvolutions')
    save_random(cfg, checkpoint)
    file = export_onnx(cfg, checkpoint, tmp_path / 'a.onnx', opset=opset)
    assert [entry.version for entry in onnx.load(file).opset_import if entry.domain == ''] == [opset]
    image = make_image((97, 120))
    check_detections(
        Predictor(file, score_thr=0.06).predict(image), Predictor(cfg, checkpoint, score_thr=0.06).predict(image)
    )


def test_plain_transformer(tmp_path):
    """A classifier whose ViT has less attention, at its own size and at others."""
    cfg = make_config('classifier')
    cfg.model.backbone = dict(type='WithLessAttention', backbone=VIT, layers=[1, 3])
    cfg.model.head.in_channels = DIM
    pipeline = cfg.test_dataloader.dataset.pipeline
    cfg.test_dataloader.dataset.pipeline = [step for step in pipeline if 'Resize' not in step['type']]
    model = build(cfg)
    for name, parameter in model.named_parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'vit.pth')
    export_onnx(cfg, str(tmp_path / 'vit.pth'), tmp_path / 'vit.onnx')
    reference = Predictor(cfg, str(tmp_path / 'vit.pth'))
    for runtime in RUNTIMES:
        pytest.importorskip(runtime)
        predictor = Predictor(str(tmp_path / 'vit.onnx'), runtime=runtime)
        for size in [(64, 64), (64, 96), (70, 101)]:
            image = make_image(size)
            found, expected = predictor.predict(image).scores, reference.predict(image).scores
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_without_torch(tmp_path, exported):
    """An exported model needs NumPy, OpenCV and the runtime: every other import is refused."""
    _, _, file = exported('cascade')
    cv2.imwrite(str(tmp_path / 'a.png'), make_image((97, 120)))
    script = textwrap.dedent("""
        import sys
        class Guard:
            def find_spec(self, name, path=None, target=None):
                if name.partition('.')[0] in {'torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmlavit', 'PIL'}:
                    raise ModuleNotFoundError(f'{name} is not for this', name=name)
        sys.meta_path.insert(0, Guard())
        from mmlavit_serve import Predictor
        predictor = Predictor(sys.argv[1])
        for image, result in predictor.predict_each(sys.argv[2]):
            print(result.draw(image).shape, len(result.to_json()) > 10)
        try:
            Predictor('config.py', 'checkpoint.pth')
        except Exception as error:
            print(type(error).__name__)
    """)
    command = [sys.executable, '-c', script, str(file), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ['(97, 120, 3) True', 'UserError']


def test_example_of_the_document(exported, tmp_path, capsys):
    (block,) = code_blocks(ROOT / 'docs/deploy.md', 'python')
    cv2.imwrite(str(tmp_path / 'a.png'), make_image((97, 120)))
    block = block.replace('outputs/detector.onnx', str(exported('cascade')[2]))
    block = block.replace('data/handwritten/images/val/000000.png', str(tmp_path / 'a.png'))
    exec(compile(block, 'document', 'exec'), {'__name__': 'document'})
    assert 'object' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('nothing', 'does not exist; expected a model that'),
        ('half', 'cannot be read as a model'),
        ('other', 'is not a model of mmlavit'),
    ],
)
@pytest.mark.parametrize('runtime', RUNTIMES)
def test_bad_files(content, message, runtime, exported, tmp_path):
    pytest.importorskip(runtime)
    _, _, file = exported('classifier')
    path = tmp_path / 'bad.onnx'
    if content == 'half':
        path.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif content == 'other':
        model = onnx.load(file)
        del model.metadata_props[:]
        onnx.save(model, path)
    with pytest.raises(UserError, match=message) as raised:
        Predictor(path, runtime=runtime)
    assert '\n' not in str(raised.value)


def test_bad_images(exported, tmp_path):
    predictor = Predictor(exported('classifier')[2])
    for image in (np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3), np.float32), np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(UserError, match=r'expected \(H, W, 3\) of uint8'):
            predictor.predict(image)
    (tmp_path / 'a.png').write_text('none')
    with pytest.raises(UserError, match='cannot be read as an image'):
        predictor.predict(tmp_path / 'a.png')


def test_missing_runtime(exported, monkeypatch):
    for runtime in RUNTIMES:
        monkeypatch.setitem(sys.modules, runtime, None)
        with pytest.raises(UserError, match=f'pip install {runtime}'):
            Predictor(exported('classifier')[2], runtime=runtime)


def test_aligned_corners(tmp_path):
    cfg = make_config('upernet')
    cfg.model.backbone = dict(type='FourConvolutions')
    head = dict(type='FCNHead', in_channels=32, in_index=3, channels=16, num_convs=1, num_classes=11)
    cfg.model.decode_head = dict(head, norm_cfg=dict(type='BN'), align_corners=True)
    torch.save(dict(state_dict=build(cfg).state_dict()), tmp_path / 'a.pth')
    file = export_onnx(cfg, tmp_path / 'a.pth', tmp_path / 'a.onnx')
    reference, predictor = Predictor(cfg, tmp_path / 'a.pth'), Predictor(file)
    for size in ((65, 97), (120, 40)):
        image = make_image(size)
        assert (predictor.predict(image).labels == reference.predict(image).labels).mean() > 0.998


def test_missing_device(exported, monkeypatch):
    """ONNX Runtime takes the CPU where the libraries of a provider are missing."""
    import onnxruntime

    everywhere = ['CUDAExecutionProvider', 'CPUExecutionProvider']
    monkeypatch.setattr(onnxruntime, 'get_available_providers', lambda: everywhere)
    for device, message in (('cuda:0', 'it has no CUDAExecutionProvider here'), ('cuda:x', 'expected cpu or cuda:0')):
        with pytest.raises(UserError, match=message):
            Predictor(exported('classifier')[2], device=device)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(out_file='a.txt'), 'is no file ending in .onnx'),
        (dict(out_file='/dev/null/a.onnx'), 'cannot write to the folder /dev/null'),
        (dict(out_file='a.onnx', opset=11), 'opset is 11, expected 18 to 20'),
        (dict(out_file='a.onnx', shape=(0, 5)), 'expected a height and a width above 0'),
    ],
)
def test_mistakes(options, message, exported):
    cfg, checkpoint, _ = exported('classifier')
    with pytest.raises(UserError, match=message):
        export_onnx(cfg, checkpoint, **options)


def test_images_of_one_position_at_the_coarsest_stride(exported, tmp_path):
    cfg, checkpoint, _ = exported('classifier')
    file = export_onnx(cfg, checkpoint, tmp_path / 'small.onnx', shape=(32, 20))
    image = np.random.default_rng(0).integers(0, 256, (32, 20, 3), dtype=np.uint8)
    found, wanted = (Predictor(*model).predict(image).scores for model in ((file,), (cfg, checkpoint)))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_pipeline_that_is_not_known(exported, tmp_path):
    cfg, checkpoint, _ = exported('retinanet')
    cfg = cfg.copy()
    cfg.test_dataloader.dataset.pipeline.insert(1, dict(type='Pad', size_divisor=32))
    with pytest.raises(UserError, match='Pad of the test pipeline is not exported'):
        export_onnx(cfg, checkpoint, tmp_path / 'a.onnx')


@pytest.mark.parametrize('kind', ['EncHead', 'DAHead'])
def test_heads_with_a_test_of_their_own(kind, tmp_path):
    cfg = make_config('upernet')
    head = dict(type=kind, in_channels=32, in_index=3, channels=16, num_classes=11, norm_cfg=dict(type='BN'))
    if kind == 'EncHead':
        head.update(in_channels=[32, 32], in_index=(2, 3), num_codes=4, add_lateral=True)
    cfg.model.decode_head = dict(head, **(dict(pam_channels=8) if kind == 'DAHead' else {}))
    torch.save(dict(state_dict=build(cfg).state_dict()), tmp_path / 'a.pth')
    with pytest.raises(UserError, match=f'{kind} predicts in its own way, which cannot be exported'):
        export_onnx(cfg, tmp_path / 'a.pth', tmp_path / 'a.onnx')


def test_suppression_by_a_function():
    """As configs in pure Python name it."""
    assert iou_threshold_of(dict(nms=dict(type=nms, iou_threshold=0.7), max_per_img=5), 'rpn') == 0.7


def test_nothing_is_left_of_a_file_that_was_not_written(tmp_path):
    with pytest.raises(OSError, match='full'), written_whole(tmp_path / 'a.onnx') as partial:
        partial.write_text('half')
        raise OSError('full')
    assert list(tmp_path.iterdir()) == []


def test_tools(exported, tmp_path, monkeypatch, capsys):
    """tools/image_demo.py takes an exported model where it takes a config."""
    _, _, file = exported('classifier')
    cv2.imwrite(str(tmp_path / 'a.png'), make_image((64, 64)))
    call_tool(monkeypatch, 'image_demo.py', tmp_path / 'a.png', file, '--out-dir', tmp_path / 'o')
    assert (tmp_path / 'o/a.png').is_file() and len(json.loads((tmp_path / 'o/predictions.json').read_text())) == 1
    assert apply(dict(type='CenterCrop', crop_size=[32, 32]), make_image((64, 64))).shape == (32, 32, 3)
