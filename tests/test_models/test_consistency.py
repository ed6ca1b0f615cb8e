"""Channels and classes that do not fit are told by the name of the entry, and those of all configs fit."""

import copy
from pathlib import Path

import pytest
from mmengine.config import Config

from mmlavit.errors import ConfigError
from mmlavit.models.consistency import find_class_numbers, require_channels, require_classes

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path for path in (ROOT / 'configs').rglob('*.py') if not {'_base_', 'plans'} & {*path.parts})


@pytest.fixture(scope='module')
def models():
    names = ('mask_rcnn_lavit_s', 'cascade_mask_rcnn_lavit_s_3x', 'retinanet_lavit_s', 'fpn_lavit_s', 'upernet_lavit_s')
    models = {name: Config.fromfile(ROOT / f'configs/{name}.py').model for name in names}
    return models | dict(classifier=Config.fromfile(ROOT / 'configs/handwritten/classify_lavit_nano.py').model)


def test_all_configs_fit():
    for path in CONFIGS:
        cfg = Config.fromfile(path)
        require_channels(cfg.model)
        assert len({number for _, number in find_class_numbers(cfg.model, 'model')}) <= 1, path


@pytest.mark.parametrize(
    ('name', 'key', 'value', 'message'),
    [
        ('mask_rcnn_lavit_s', 'neck.in_channels', [32, 64, 128, 192],
         r"model.neck.in_channels is \[32, 64, 128, 192\], but the backbone \(arch='small'\) gives "
         r'\[64, 128, 320, 512\]; set it to \[64, 128, 320, 512\]'),
        ('mask_rcnn_lavit_s', 'neck.in_channels', [64, 128, 320], r'model.neck.in_channels is \[64, 128, 320\], but'),
        ('mask_rcnn_lavit_s', 'backbone.out_indices', (1, 2, 3), r'gives \[128, 320, 512\]; set it to'),
        ('mask_rcnn_lavit_s', 'backbone.arch', 'nano', r"the backbone \(arch='nano'\) gives \[32, 64, 128, 192\]"),
        ('mask_rcnn_lavit_s', 'rpn_head.in_channels', 64, 'model.rpn_head.in_channels is 64, but the neck gives 256'),
        ('retinanet_lavit_s', 'bbox_head.in_channels', 64, 'model.bbox_head.in_channels is 64, but the neck gives 256'),
        ('retinanet_lavit_s', 'neck.out_channels', 64, 'model.bbox_head.in_channels is 256, but the neck gives 64'),
        ('fpn_lavit_s', 'decode_head.in_channels', [64] * 4, r'model.decode_head.in_channels is \[64, 64'),
        ('upernet_lavit_s', 'decode_head.in_channels', [64, 128, 256, 512], 'model.decode_head.in_channels is'),
        ('upernet_lavit_s', 'auxiliary_head.in_channels', 512, 'model.auxiliary_head.in_channels is 512, but .* 320;'),
        ('upernet_lavit_s', 'auxiliary_head.in_index', 4, 'model.auxiliary_head.in_index is 4, but .* gives 4 maps'),
        ('classifier', 'head.in_channels', 512, 'model.head.in_channels is 512, but the neck gives 192; set it to 192'),
    ],
)  # fmt: skip
def test_channels(models, name, key, value, message):
    model = Config(dict(model=copy.deepcopy(models[name])))
    model.merge_from_dict({f'model.{key}': value})
    with pytest.raises(ConfigError, match=message):
        require_channels(model.model)


@pytest.mark.parametrize(
    ('name', 'places'),
    [
        ('mask_rcnn_lavit_s', ['model.roi_head.bbox_head', 'model.roi_head.mask_head']),
        (
            'cascade_mask_rcnn_lavit_s_3x',
            [*(f'model.roi_head.bbox_head.{i}' for i in range(3)), 'model.roi_head.mask_head'],
        ),
        ('retinanet_lavit_s', ['model.bbox_head']),
        ('upernet_lavit_s', ['model.decode_head', 'model.auxiliary_head']),
        ('classifier', ['model.data_preprocessor', 'model.head']),
    ],
)  # fmt: skip
def test_classes(models, name, places):
    numbers = dict(find_class_numbers(models[name], 'model'))
    assert sorted(numbers) == sorted(f'{place}.num_classes' for place in places)
    number = next(iter(numbers.values()))
    require_classes(models[name], dict(classes=[str(i) for i in range(number)]), 'data')
    require_classes(models[name], {}, 'data')
    with pytest.raises(ConfigError, match=rf'{places[0]}.num_classes is {number}, but train.json has 2 classes'):
        require_classes(models[name], dict(classes=['a', 'b']), 'train.json')
    with pytest.raises(ConfigError, match="metainfo.classes is the string 'cat'; expected a list"):
        require_classes(models[name], dict(classes='cat'), 'data')


def test_classes_of_things():
    """Heads of boxes have those alone in panoptic segmentation."""
    model = dict(roi_head=dict(bbox_head=dict(num_classes=2)), semantic_head=dict(num_classes=3))
    metainfo = dict(classes=['cat', 'dog', 'sky'], thing_classes=['cat', 'dog'])
    require_classes(model, metainfo, 'data')
    with pytest.raises(ConfigError, match='num_classes is 2, but data has 3 classes'):
        require_classes(model, dict(classes=metainfo['classes']), 'data')


def test_neck_that_begins_with_the_last_map():
    backbone = dict(type='LaViT', arch='small', out_indices=(1, 2, 3))
    require_channels(dict(backbone=backbone, neck=dict(type='YOLOV3Neck', in_channels=[512, 320, 128])))
    with pytest.raises(ConfigError, match=r'set it to \[512, 320, 128\]'):
        require_channels(dict(backbone=backbone, neck=dict(type='YOLOV3Neck', in_channels=[128, 320, 512])))


def test_classes_of_boundaries():
    heads = [dict(type='FCNHead', num_classes=19), dict(type='STDCHead', num_classes=2)]
    heads += [dict(type='mmdet.GroundingDINOHead', num_classes=256), dict(type='ATSSVLFusionHead', num_classes=80)]
    assert [number for _, number in find_class_numbers(dict(auxiliary_head=heads), 'model')] == [19]


def test_necks_one_after_the_other():
    backbone = dict(type='LaViT', arch='small')
    fpn = dict(type='FPN', in_channels=[64, 128, 320, 512], out_channels=256, num_outs=5)
    bfp = dict(type='BFP', in_channels=256, num_levels=5)
    head = dict(type='RetinaHead', in_channels=256)
    require_channels(dict(backbone=backbone, neck=[fpn, bfp], bbox_head=head))
    with pytest.raises(ConfigError, match='model.neck.1.in_channels is 64, but the neck gives 256'):
        require_channels(dict(backbone=backbone, neck=[fpn, dict(bfp, in_channels=64)], bbox_head=head))
    with pytest.raises(ConfigError, match=r'model.neck.0.in_channels is \[1\], but the backbone'):
        require_channels(dict(backbone=backbone, neck=[dict(fpn, in_channels=[1]), bfp], bbox_head=head))
    with pytest.raises(ConfigError, match='model.bbox_head.in_channels is 64, but the neck gives 256'):
        require_channels(dict(backbone=backbone, neck=[fpn], bbox_head=dict(head, in_channels=64)))


def test_other_backbones_are_left_alone():
    require_channels(dict(backbone=dict(type='ResNet', depth=50), neck=dict(type='FPN', in_channels=[1])))
    require_channels(dict(type='mmlavit.deployment.evaluation.ExportedModel', file='model.onnx'))


def test_a_data_preprocessor_beside_the_model():
    """mmpretrain's own configs have it there; a model with its own does not get it."""
    two, beside = dict(classes=['a', 'b']), dict(num_classes=1000, to_onehot=True)
    model = dict(type='ImageClassifier', head=dict(num_classes=2))
    with pytest.raises(ConfigError, match='^data_preprocessor.num_classes is 1000, but data has 2 classes'):
        require_classes(model, two, 'data', beside)
    require_classes({**model, 'data_preprocessor': dict(num_classes=2)}, two, 'data', beside)
    require_classes(model, two, 'data', dict(num_classes=1000))  # which nothing reads, as in mmpretrain's base configs
