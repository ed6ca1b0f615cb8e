"""Transforms without OpenMMLab against those of mmcv and mmpretrain."""

import tracemalloc

import numpy as np
import pytest
from mmengine.registry import TRANSFORMS, init_default_scope
from PIL import Image

from mmlavit.deployment.pipeline import describe_known_steps, describe_pipeline
from mmlavit.errors import ConfigError
from mmlavit.utils.toolbox import load_toolbox
from mmlavit_serve import UserError
from mmlavit_serve.resizing import apply, resize, resizing_bytes

SIZES = [(97, 120), (300, 261), (64, 64), (31, 500)]
STEPS = [
    ('mmdet', dict(type='Resize', scale=(1333, 800), keep_ratio=True)),
    ('mmdet', dict(type='Resize', scale=(133, 80), keep_ratio=True)),
    ('mmdet', dict(type='Resize', scale=(70, 90), keep_ratio=False)),
    ('mmdet', dict(type='Resize', scale_factor=1.0)),
    ('mmdet', dict(type='Resize', scale_factor=(1.3, 0.7))),
    ('mmseg', dict(type='Resize', scale=(2048, 512), keep_ratio=True)),
    ('mmpretrain', dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bicubic')),
    ('mmpretrain', dict(type='ResizeEdge', scale=100, edge='long', interpolation='area')),
    ('mmpretrain', dict(type='CenterCrop', crop_size=61)),
    ('mmpretrain', dict(type='CenterCrop', crop_size=(200, 90))),
]


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize(('scope', 'config'), STEPS)
def test_transforms(scope, config, size):
    load_toolbox(scope)
    init_default_scope(scope)
    (step,) = describe_pipeline([dict(type='LoadImageFromFile'), config])
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    expected = TRANSFORMS.build(dict(config))(dict(img=image.copy(), img_shape=size))['img']
    assert np.array_equal(apply(step, image), expected)


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic', 'lanczos'])
@pytest.mark.parametrize('size', [(256, 256), (60, 45), (261, 31), (31, 300), (1, 1), (300, 500)])
def test_pillow(interpolation, size):
    image = np.random.default_rng(0).integers(0, 256, (300, 261, 3), np.uint8)
    expected = Image.fromarray(image).resize(size, getattr(Image.Resampling, interpolation.upper()))
    found = resize(image, size, interpolation, 'pillow')
    if size == (256, 256):  # Pillow 13 filters the other axis first, and rounds between the two
        assert np.abs(found.astype(int) - expected).mean() < 1
    else:
        assert np.array_equal(found, expected)


@pytest.mark.parametrize('backend', ['pillow', 'cv2'])
def test_nothing_left(backend):
    with pytest.raises(UserError, match=r'an image of 1x9 cannot be resized as the model wants it \(to 0x4\)'):
        resize(np.zeros((1, 9, 3), np.uint8), (4, 0), 'bilinear', backend)


@pytest.mark.parametrize(
    ('step', 'message'),
    [
        (dict(type='RandomFlip', prob=0.5), 'RandomFlip of the test pipeline is not exported'),
        (dict(type='LoadImageFromFile', to_float32=True), 'reads images in a way'),
        (dict(type='CenterCrop', crop_size=9, auto_pad=True), 'auto_pad'),
        (dict(type='Resize', scale=(9, 9), backend='pillow', interpolation='box'), 'known are bilinear'),
    ],
)
def test_refused(step, message):
    load_toolbox('mmpretrain')
    init_default_scope('mmpretrain')
    with pytest.raises(ConfigError, match=message):
        describe_pipeline([dict(type='LoadImageFromFile'), step])


def test_steps_that_are_known():
    """Also beside one that is not, and with mmcv's own backend."""
    load_toolbox('mmpretrain')
    init_default_scope('mmpretrain')
    steps = [
        dict(type='LoadImageFromFile', to_float32=True),
        dict(type='Resize', scale=(9, 7), backend=None),
        dict(type='RandomFlip', prob=0.5),
        dict(type='CenterCrop', crop_size=5),
    ]
    known = describe_known_steps(steps)
    assert [step['type'] for step in known] == ['Resize', 'CenterCrop'] and known[0]['backend'] == 'cv2'
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    expected = TRANSFORMS.build(steps[1])(dict(img=image))['img']
    assert np.array_equal(apply(known[0], image), expected)


def test_images_from_no_file():
    """Such as CIFAR's, in another order of colours."""
    load_toolbox('mmpretrain')
    init_default_scope('mmpretrain')
    with pytest.raises(ConfigError, match='has no LoadImageFromFile'):
        describe_pipeline([dict(type='PackInputs')])


@pytest.mark.parametrize(
    ('shape', 'size'),
    [((400, 600), (84, 56)), ((400, 600), (300, 200)), ((60, 40), (800, 1200)), ((1, 300), (7680, 25))],
)
def test_memory_of_pillows_resizing(shape, size):
    """The estimate is above what the arrays take, and not by much."""
    step = dict(type='Resize', scale=list(size), scale_factor=None, keep_ratio=False, backend='pillow')
    image = np.zeros((*shape, 3), np.uint8)
    tracemalloc.start()
    resize(image, size, 'bicubic', 'pillow')
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < resizing_bytes([step], shape) < 2 * peak
