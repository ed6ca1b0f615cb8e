"""Datasets whose rules are not those of COCO's boxes, or whose images are no files, are not measured by them."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from faults import NUMBER, write_data
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, TRANSFORMS, init_default_scope
from PIL import Image
from test_datasets.test_faults import read

from mmlavit.datasets.check.config import _check_labels, check_config, check_dataset
from mmlavit.datasets.guard import GuardedPipeline, guard_dataset
from mmlavit.errors import DataError, UserError
from mmlavit.utils.toolbox import load_toolbox


@pytest.mark.parametrize('label', [np.array([0, 2]), np.int64(2), [0, 2], 2, (2,)], ids=str)
def test_labels_of_all_kinds(label):
    sample = dict(img_path='a.jpg', gt_label=label)
    assert GuardedPipeline(Compose([]), labels=3)(dict(sample))['gt_label'] is label
    with pytest.raises(DataError, match='a.jpg has the label .*2.*, but the model has classes 0 to 1'):
        GuardedPipeline(Compose([]), labels=2)(dict(sample))


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    """Config of a detector, and its data in the current folder."""
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(write_data(tmp_path, 'detection'))
    cfg.work_dir = str(tmp_path)
    load_toolbox('mmdet')
    init_default_scope('mmdet')
    return cfg


def edit(change):
    file = Path('data/train.json')
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def reverse_categories(content):
    content['categories'].reverse()


@pytest.mark.parametrize(('kind', 'right'), [('CocoDataset', False), ('Objects365V1Dataset', True)])
def test_order_of_categories(cfg, kind, right):
    """mmdet numbers those of Objects365 by their ids, those of others by the file."""
    edit(reverse_categories)
    cfg.train_dataloader.dataset.type = kind
    assert (not list(check_config(cfg, None))) == right
    if right:
        assert len(read(cfg)) == NUMBER
    else:
        with pytest.raises(DataError, match='another order than metainfo.classes'):
            read(cfg)


def test_maps_beside_boxes(cfg, tmp_path):
    """As of HTC's stuff, which has more classes than the boxes."""
    dataset = cfg.train_dataloader.dataset
    for image in Path('data/images').iterdir():
        shape = Image.open(image).size[::-1]
        Path('data/stuff').mkdir(exist_ok=True)
        Image.fromarray(np.full(shape, 150, np.uint8)).save(Path('data/stuff', image.with_suffix('.png').name))
    dataset.data_prefix.seg = 'stuff/'
    dataset.pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_seg=True),
        dict(type='PackDetInputs'),
    ]
    assert list(check_config(cfg, None)) == []
    assert len(read(cfg)) == NUMBER


def test_images_without_annotations(cfg):
    """COCO's test-dev; for training they are a fault."""
    edit(lambda content: content.pop('annotations'))
    assert any('has no annotations: get it again' in finding for finding in check_config(cfg, None))
    cfg.train_dataloader.dataset.test_mode = True
    for change in (dict, lambda content: content.update(annotations=[])):
        edit(change)
        (finding,) = check_config(cfg, None)
        assert finding.startswith('note: data/train.json has no annotations: a model can predict on its images')


def test_objects_that_mmdet_does_not_read(cfg):
    """Marked to be ignored, or of a category that the dataset leaves out; their ids are read all the same."""
    edit(lambda content: content['categories'].append(dict(id=9, name='other')))
    for change in (dict(ignore=1, bbox=None, area=None), dict(category_id=9, ignore=0, bbox=[1, 1, 0, 0], area=0)):
        edit(lambda content, change=change: content['annotations'][0].update(change))
        findings = [finding for finding in check_config(cfg, None) if not finding.startswith('note:')]
        assert findings == [] and len(read(cfg)) == NUMBER
    edit(lambda content: content['annotations'][0].pop('id'))
    assert any('annotations have no id' in finding for finding in check_config(cfg, None))


def test_several_texts_of_an_image():
    entries = [dict(img_path='a.jpg', text=text) for text in 'xy']
    assert list(_check_labels(entries, None, {}, 'data')) == []
    entries = [dict(img_path='a.jpg', gt_label=0)] * 2
    assert list(_check_labels(entries, None, {}, 'data')) == ['a.jpg is listed more than once: remove one']


def test_queries_of_a_retrieval():
    """Their labels are the numbers of the images that they should find."""
    entries = [dict(img_path='a.jpg', gt_label=[5, 900])]
    model = dict(type='ImageToImageRetriever', prototype='gallery', head=dict(num_classes=10))
    assert list(_check_labels(entries, None, model, 'data')) == []
    del model['prototype']
    assert len(list(_check_labels(entries, None, model, 'data'))) == 1


def test_classes_in_a_file(cfg):
    Path('classes.txt').write_text('one\ntwo\n')
    cfg.train_dataloader.dataset.metainfo = dict(classes='classes.txt')
    assert list(check_config(cfg, None)) == []


def test_type_that_is_a_class(cfg):
    """As in configs in pure Python."""
    from mmdet.datasets import CocoDataset

    cfg.train_dataloader.dataset.type = CocoDataset
    assert list(check_config(cfg, None)) == []


def test_part_of_a_config(cfg):
    for key in ('model', 'default_scope'):
        cfg.pop(key)
    with pytest.raises(UserError, match='has no model and no default_scope; expected the config of a whole model'):
        list(check_config(cfg, None))


def test_nothing_is_downloaded(tmp_path):
    load_toolbox('mmpretrain')
    init_default_scope('mmpretrain')
    dataset = ConfigDict(type='CIFAR10', data_root=str(tmp_path), split='test', pipeline=[])
    (note,) = check_dataset(dataset, dict(head=dict(num_classes=10)), 'test_dataloader', None)
    assert note == 'note: test_dataloader: CIFAR10 is not there, or not whole; a training will download it'
    assert list(tmp_path.iterdir()) == []


def test_images_that_are_no_files(tmp_path):
    """CIFAR's are parts of an archive."""
    load_toolbox('mmpretrain')
    init_default_scope('mmpretrain')
    images = np.zeros((4, 3072), np.uint8)
    folder = tmp_path / 'cifar-10-batches-py'
    folder.mkdir()
    for name in ('test_batch', 'batches.meta', *(f'data_batch_{i}' for i in range(1, 6))):
        content = dict(data=images, labels=[0, 1, 2, 9], label_names=list('abcdefghij'))
        (folder / name).write_bytes(pickle.dumps(content))
    from mmpretrain.datasets import CIFAR10

    patched = type('CIFAR10', (CIFAR10,), dict(_check_integrity=lambda self: True))
    dataset = ConfigDict(type=patched, data_root=str(tmp_path), split='test', pipeline=[])
    assert list(check_dataset(dataset, dict(head=dict(num_classes=10)), 'test_dataloader', None)) == []
    classes, label = check_dataset(dataset, dict(head=dict(num_classes=9)), 'test_dataloader', None)
    assert 'num_classes is 9, but test_dataloader has 10 classes' in classes
    assert label.startswith('an image (label 9) is out of range')


def test_error_of_a_transform_on_a_remote_image(cfg, monkeypatch):
    """What fails is named, not the file, which is elsewhere."""

    class Faulty:
        def __init__(self):
            pass

        def __call__(self, results):
            raise ValueError('my own bug')

    monkeypatch.setitem(TRANSFORMS._module_dict, 'Faulty', Faulty)
    dataset = DATASETS.build(ConfigDict(cfg.train_dataloader.dataset, pipeline=[dict(type='Faulty')]))
    guard_dataset(dataset, None, None)
    with pytest.raises(RuntimeError, match=r'Faulty failed on it \(ValueError: my own bug\)'):
        dataset.pipeline(dict(img_path='s3://bucket/a.jpg', seg_map_path='s3://bucket/a.png'))
    with pytest.raises(DataError, match='does not exist'):
        dataset.pipeline(dict(img_path='no/a.jpg'))
