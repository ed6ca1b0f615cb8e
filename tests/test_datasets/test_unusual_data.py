"""Data that is right and unlike that of the common datasets: nothing of it counts as a fault, or takes the blame."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset, Compose
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner.runner import _SlicedDataset
from PIL import Image
from pycocotools import mask as coco_mask

from mmlavit.datasets.check.coco import check_coco_file, covers
from mmlavit.datasets.check.config import check_dataset, explain_dataset
from mmlavit.datasets.check.images import find_fault, read_size
from mmlavit.datasets.check.maps import find_zero_label_fault
from mmlavit.datasets.guard import GuardedPipeline, guard_dataset
from mmlavit.engine.data import _require_fitting_classes
from mmlavit.errors import DataError
from mmlavit.utils.config_files import load_config
from mmlavit.utils.toolbox import load_toolbox

ROOT = Path(__file__).parents[2]
SIZE = (48, 64)
rng = np.random.default_rng(0)


class Faulty:
    """A transform with a mistake."""

    def __call__(self, data):
        raise ValueError('a mistake')


@DATASETS.register_module()
class ListOfOne(BaseDataset):
    """A dataset of a user's own, which takes no more arguments than it needs."""

    def __init__(self, image, pipeline=()):
        self.image = image
        super().__init__(pipeline=pipeline)

    def load_data_list(self):
        """List it."""
        return [dict(img_path=self.image)]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ('images', 'maps'):
        (tmp_path / folder).mkdir()
    return tmp_path


def enter(scope):
    load_toolbox(scope)
    return DefaultScope.overwrite_default_scope(scope)


def blame(pipeline, **data):
    """What is said if a transform fails after those of a pipeline."""
    with pytest.raises(Exception) as error:
        GuardedPipeline(Compose([*pipeline, Faulty()]))(data)
    return str(error.value)


def write_panoptic():
    from mmdet.datasets import CocoPanopticDataset

    meta = CocoPanopticDataset.METAINFO
    things, stuff = meta['thing_classes'], meta['stuff_classes']
    names = enumerate((*things, *stuff))
    categories = [dict(id=i, name=name, isthing=int(i < len(things)), color=[0, 0, 0]) for i, name in names]
    Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save('images/0.jpg')
    segments = np.zeros((*SIZE, 3), np.uint8)
    segments[..., 1] = 9  # number 9 * 256
    Image.fromarray(segments).save('maps/0.png')
    segment = dict(id=9 * 256, category_id=100, area=SIZE[0] * SIZE[1], bbox=[0, 0, *SIZE[::-1]], iscrowd=0)
    content = dict(
        images=[dict(id=0, file_name='0.jpg', height=SIZE[0], width=SIZE[1])],
        annotations=[dict(image_id=0, file_name='0.png', segments_info=[segment])],
        categories=categories,
    )
    with open('panoptic.json', 'w') as file:
        json.dump(content, file)


def test_panoptic(here):
    write_panoptic()
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadPanopticAnnotations')]
    folders = dict(img='images/', seg='maps/')
    with enter('mmdet'):
        dataset = ConfigDict(
            type='CocoPanopticDataset', data_root='.', ann_file='panoptic.json', data_prefix=folders, pipeline=pipeline
        )
        assert list(check_dataset(dataset, {}, 'train', None)) == []


def test_panoptic_files(here):
    """As above, without the package that reads segments."""
    write_panoptic()
    with enter('mmdet'):
        loaded = [dict(type='LoadImageFromFile')]
        message = blame(loaded, img_path='images/0.jpg', seg_map_path='maps/0.png')
    assert message == 'images/0.jpg: Faulty failed on it (ValueError: a mistake)'
    from mmlavit.datasets.check.images import find_map_fault

    assert find_map_fault('maps/0.png', SIZE, None, panoptic=True) == ''
    assert 'is not a label map' in find_map_fault('maps/0.png', SIZE, None)
    assert 'is 64x48, but its image is 64x64' in find_map_fault('maps/0.png', (64, 64), None, panoptic=True)


def check_maps(suffix, pipeline, map_suffix='.png'):
    """What is found wrong with images in ``images`` and maps of two classes in ``maps``."""
    dataset = ConfigDict(
        type='BaseSegDataset',
        data_root='.',
        img_suffix=suffix,
        seg_map_suffix=map_suffix,
        metainfo=dict(classes=('a', 'b'), palette=[[0, 0, 0], [9, 9, 9]]),
        data_prefix=dict(img_path='images', seg_map_path='maps'),
        pipeline=pipeline,
    )
    return list(check_dataset(dataset, dict(decode_head=dict(num_classes=2)), 'train', None))


@pytest.mark.parametrize(('color_type', 'fault'), [('unchanged', False), ('color', True)])
def test_16_bits(here, color_type, fault):
    cv2.imwrite('images/0.tif', rng.integers(0, 65535, (*SIZE, 3)).astype(np.uint16))
    Image.fromarray(rng.integers(0, 2, SIZE, np.uint8)).save('maps/0.png')
    pipeline = [dict(type='LoadImageFromFile', color_type=color_type), dict(type='LoadAnnotations')]
    with enter('mmseg'):
        found = check_maps('.tif', pipeline)
        message = blame(pipeline[:1], img_path='images/0.tif')
    assert ['has 16 bits in each channel' in line for line in found] == [True] * fault
    assert message == 'images/0.tif: Faulty failed on it (ValueError: a mistake)'


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'tif', 'webp', 'avif'])
def test_turned_by_a_tag(here, suffix):
    """The size is that of what mmcv loads."""
    import mmcv

    exif = Image.Exif()
    exif[0x0112] = 6
    try:
        Image.new('RGB', SIZE[::-1]).save(f'a.{suffix}', exif=exif)
        loaded = mmcv.imread(f'a.{suffix}')
    except (KeyError, OSError, ValueError):
        loaded = None
    if loaded is None:
        pytest.skip(f'Pillow or OpenCV as installed does not know {suffix}')
    assert read_size(f'a.{suffix}') == loaded.shape[:2]


@pytest.mark.parametrize('color_type', ['color', 'unchanged', 'color_ignore_orientation'])
def test_turned_if_the_pipeline_turns(here, color_type):
    """A map of the size that the image has once it is loaded is right, and one of the other is not."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save('images/0.png', exif=exif)
    pipeline = [dict(type='LoadImageFromFile', color_type=color_type), dict(type='LoadAnnotations')]
    with enter('mmseg'):
        shape = Compose(pipeline[:1])(dict(img_path='images/0.png'))['img'].shape[:2]
        for size, faults in ((shape, 0), (shape[::-1], 1)):
            Image.fromarray(rng.integers(0, 2, size, np.uint8)).save('maps/0.png')
            found = check_maps('.png', pipeline)
            assert len(found) == faults, found


def test_arrays(here):
    """Images and maps of mmseg's biomedical datasets are no images to Pillow."""
    np.save('images/0.npy', rng.random(SIZE))
    np.save('maps/0.npy', rng.integers(0, 2, SIZE))
    loaders = ('LoadBiomedicalImageFromFile', 'LoadBiomedicalAnnotation')
    with enter('mmseg'):
        assert check_maps('.npy', [dict(type=name) for name in loaders], '.npy') == []


def test_files_of_a_storage(here):
    """Only the transform that loads them knows where they are, so their paths are not looked at."""
    with enter('mmdet'):
        load = Compose([dict(type='LoadImageFromFile', backend_args=dict(backend='local'))]).transforms[0]
        load.backend_args = dict(backend='petrel', path_mapping={'data/': 's3://data/'})
        with pytest.raises(RuntimeError) as error:
            GuardedPipeline(Compose([load]))(dict(img_path='data/0.jpg'))
        assert str(error.value).startswith('data/0.jpg: LoadImageFromFile failed on it (')
        guarded = GuardedPipeline(Compose([dict(type='LoadImageFromFile')]))
        with pytest.raises(Exception, match='data/0.jpg does not exist'):
            guarded(dict(img_path='data/0.jpg'))


def test_arguments_of_ones_own(here):
    """A dataset is asked for all that it has only in words that it knows."""
    Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save('images/0.png')
    with enter('mmpretrain'):
        dataset = ConfigDict(type='ListOfOne', image='images/0.png', pipeline=[dict(type='LoadImageFromFile')])
        assert list(check_dataset(dataset, {}, 'train', None)) == []
        built = DATASETS.build(dataset)
        guard_dataset(built, None, None)
        once = built.pipeline
        guard_dataset(built, None, None)
        assert built.pipeline is once


@pytest.mark.parametrize(
    ('part', 'change', 'message'),
    [
        ('annotations', dict(area=None), 'annotations have no area'),
        ('annotations', dict(area='81'), 'annotations have an area that is no number'),
        ('annotations', dict(image_id=[0]), 'annotations that are no objects with plain ids (number 0, from 0)'),
        ('annotations', None, 'annotations that are no objects with plain ids'),
        ('images', dict(width=None), 'images lack one of file_name, height, width, id, or have no numbers there'),
        ('images', dict(height='48'), 'or have no numbers there'),
        ('images', dict(id={}), 'images that are no objects with plain ids'),
    ],
)
def test_nulls_and_texts_in_coco(here, part, change, message):
    content = dict(
        images=[dict(id=0, file_name='0.jpg', height=48, width=64)],
        annotations=[dict(id=0, image_id=0, category_id=0, bbox=[1, 1, 9, 9], area=81, iscrowd=0)],
        categories=[dict(id=0, name='one')],
    )
    content[part][0] = None if change is None else {**content[part][0], **change}
    (here / 'a.json').write_text(json.dumps(content))
    (finding,) = check_coco_file(here / 'a.json', ('one',))
    assert message in finding


def write_coco(**changes):
    """One object of the first of two classes."""
    content = dict(
        images=[dict(id=0, file_name='0.jpg', height=48, width=64)],
        annotations=[dict(id=1, image_id=0, category_id=0, bbox=[1, 1, 9, 9], area=81, iscrowd=0)],
        categories=[dict(id=0, name='a'), dict(id=1, name='b')],
    )
    content.update(changes)
    Path('a.json').write_text(json.dumps(content))
    return content


@pytest.mark.parametrize(
    ('ids', 'classes', 'message'),
    [
        ((0, 1), ('a', 'b'), ''),
        ((1, 1), ('a', 'b'), 'has several categories of one id (1): give each its own'),
        ((0, 1), ('a', 'b', 'a'), 'is read with metainfo.classes that name a more than once'),
    ],
)
def test_numbers_of_classes(here, ids, classes, message):
    """mmdet would train all objects as the last category of an id, or of a name."""
    write_coco(categories=[dict(id=number, name=name) for number, name in zip(ids, 'ab')])
    found = [line for line in check_coco_file(Path('a.json'), classes) if 'more than once' in line or 'one id' in line]
    assert [line.removeprefix('a.json ')[: len(message)] for line in found] == [message] * bool(message)
    with enter('mmdet'):
        dataset = DATASETS.build(
            dict(
                type='CocoDataset',
                data_prefix=dict(img=''),
                ann_file='a.json',
                metainfo=dict(classes=classes),
                pipeline=[],
                serialize_data=False,
            )
        )
        cfg = Config(dict(model=dict(bbox_head=dict(num_classes=len(classes)))))
        if message:
            with pytest.raises(DataError, match=message[:30]):
                _require_fitting_classes(dataset, cfg, [], True)
        else:
            _require_fitting_classes(dataset, cfg, [], True)


@pytest.mark.parametrize(('number', 'note'), [(1, False), (1001, True)])
def test_a_box_without_height_among_many(here, number, note):
    """COCO's own file has two of 860,001."""
    (good,) = write_coco()['annotations']
    entries = [dict(good, id=i + 1, segmentation=[[1, 1, 9, 1, 9, 9]]) for i in range(number)]
    entries[0]['bbox'] = [1, 1, 9, 0]
    write_coco(annotations=entries)
    (found,) = check_coco_file(Path('a.json'), ('a', 'b'), masks='any')
    assert found.startswith('note: ') == note and 'a box below one pixel, and are left out in training' in found


def test_annotations_in_a_storage(here, monkeypatch):
    """Nobody says that they are missing."""
    dataset = ConfigDict(type='CocoDataset', data_root='s3://bucket/', ann_file='a.json', metainfo=dict(classes=('a',)))
    with enter('mmdet'):
        (finding,) = check_dataset(dataset, {}, 'train', None)
        assert 'CocoDataset cannot read it' in finding and 'does not exist' not in finding
        error = ConnectionError('no network')
        assert explain_dataset(dataset, {}, error) is error


def test_metainfo_that_is_a_list(here):
    write_coco()
    with enter('mmdet'):
        (finding,) = check_dataset(
            ConfigDict(type='CocoDataset', ann_file='a.json', metainfo=['a', 'b']), {}, 'train', None
        )
    assert 'metainfo should be a Mapping or Config' in finding


def test_files_that_the_system_refuses(here, monkeypatch):
    """The one is named, and the others are looked at."""
    write_coco()
    Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save('images/0.png')

    def refuse(*args, **kwargs):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr('builtins.open', refuse)
    monkeypatch.setattr(Path, 'read_bytes', refuse)
    assert find_fault('images/0.png') == 'cannot be read (Permission denied)'
    (finding,) = check_coco_file(Path('a.json'), ('a', 'b'))
    assert finding.startswith('a.json cannot be read (Permission denied)')


def write_ade20k(labels):
    """One image of training and validation, 48x64, with its map."""
    root = Path('data/ade/ADEChallengeData2016')
    for split in ('training', 'validation'):
        for folder in ('images', 'annotations'):
            (root / folder / split).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save(root / f'images/{split}/0.jpg')
        Image.fromarray(labels).save(root / f'annotations/{split}/0.png')


@pytest.mark.parametrize('name', ['upernet_lavit_s.py', 'fpn_lavit_s.py'])
def test_maps_that_are_loaded_after_resizing(name, here):
    """In tests, mmseg resizes the image alone: predictions are compared at the size of the map."""
    write_ade20k(rng.integers(0, 151, SIZE, np.uint8))
    cfg = load_config(str(ROOT / 'configs' / name))
    with enter('mmseg'):
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
        guard_dataset(dataset, 150, None)
        sample = dataset[0]
    assert sample['inputs'].shape[1:] != SIZE and sample['data_samples'].gt_sem_seg.shape == SIZE


def test_maps_of_another_size_after_resizing(here):
    write_ade20k(rng.integers(0, 151, SIZE[::-1], np.uint8))
    cfg = load_config(str(ROOT / 'configs/upernet_lavit_s.py'))
    with enter('mmseg'):
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
        guard_dataset(dataset, 150, None)
        with pytest.raises(DataError, match='0.png is 48x64, but its image is 64x48 as it is loaded'):
            dataset[0]


class LoadPanopticAnnotations:
    """In the place of mmdet's, whose package is not installed: gives a map of neither the image's size."""

    def __call__(self, data):
        return dict(data, gt_seg_map=np.zeros((10, 10), np.uint8))


def test_panoptic_map_after_resizing(here):
    write_panoptic()
    with enter('mmdet'):
        steps = Compose([dict(type='LoadImageFromFile'), dict(type='Resize', scale=(32, 24))])
        steps.transforms.append(LoadPanopticAnnotations())
        files = dict(img_path='images/0.jpg', seg_map_path='maps/0.png')
        GuardedPipeline(steps, 200, panoptic=True)(dict(files))
        with pytest.raises(DataError, match='maps/0.png is not a label map'):
            GuardedPipeline(steps, 200)(dict(files))


def test_palette_that_opencv_loads_as_colours(here):
    Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save('images/0.png')
    image = Image.fromarray(rng.integers(0, 2, SIZE, np.uint8))
    image.putpalette([0, 0, 0, 9, 9, 9])
    image.save('maps/0.png')
    data = dict(img_path='images/0.png', seg_map_path='maps/0.png', seg_fields=[], reduce_zero_label=False)
    for backend, good in (('pillow', True), ('cv2', False)):
        load = dict(type='LoadAnnotations', imdecode_backend=backend)
        with enter('mmseg'):
            guarded = GuardedPipeline(Compose([dict(type='LoadImageFromFile'), load]), labels=2)
            if good:
                assert guarded(dict(data))['gt_seg_map'].max() == 1
            else:
                with pytest.raises(DataError, match='maps/0.png has a palette, and is loaded as colours'):
                    guarded(dict(data))


def test_bands_that_only_tifffile_reads(here):
    tifffile = pytest.importorskip('tifffile')
    tifffile.imwrite('images/0.tif', rng.integers(0, 256, (*SIZE, 8), np.uint8), planarconfig='contig')
    Image.fromarray(rng.integers(0, 2, SIZE, np.uint8)).save('maps/0.png')
    load = dict(type='LoadImageFromFile', imdecode_backend='tifffile', color_type='unchanged')
    with enter('mmseg'):
        assert check_maps('.tif', [load, dict(type='LoadAnnotations')]) == []


def test_image_resized_to_its_smaller_map(here):
    Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save('images/0.png')
    Image.fromarray(rng.integers(0, 2, (24, 32), np.uint8)).save('maps/0.png')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(32, 24)), dict(type='LoadAnnotations')]
    data = dict(img_path='images/0.png', seg_map_path='maps/0.png', seg_fields=[], reduce_zero_label=False)
    with enter('mmseg'):
        assert GuardedPipeline(Compose(pipeline), labels=2)(data)['gt_seg_map'].shape == (24, 32)


def test_black_16_bits(here):
    """Nothing was lost of what is black in 16 bits."""
    cv2.imwrite('images/0.png', np.zeros((*SIZE, 3), np.uint16))
    with enter('mmdet'):
        assert not GuardedPipeline(Compose([dict(type='LoadImageFromFile')]))(dict(img_path='images/0.png'))[
            'img'
        ].any()


def test_labels_beyond_8_bits(here):
    """mmseg makes 1 of 257."""
    Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save('images/0.png')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    data = dict(img_path='images/0.png', seg_map_path='maps/0.png', seg_fields=[], reduce_zero_label=False)
    for value, good in ((1, True), (65535, True), (257, False)):
        cv2.imwrite('maps/0.png', np.full(SIZE, value, np.uint16))
        with enter('mmseg'):
            guarded = GuardedPipeline(Compose(pipeline), labels=2)
            if good:
                assert (guarded(dict(data))['gt_seg_map'] == value % 256).all()
            else:
                with pytest.raises(DataError, match='maps/0.png has labels above 255'):
                    guarded(dict(data))


def test_labels_beyond_8_bits_that_opencv_cannot_read(here):
    Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save('images/0.png')
    Image.fromarray(np.full(SIZE, 257, np.uint16)).save('maps/0.tif', compression='zstd')
    assert cv2.imread('maps/0.tif', cv2.IMREAD_UNCHANGED) is None
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    data = dict(img_path='images/0.png', seg_map_path='maps/0.tif', seg_fields=[], reduce_zero_label=False)
    with enter('mmseg'), pytest.raises(DataError, match='maps/0.tif has labels above 255'):
        GuardedPipeline(Compose(pipeline), labels=2)(data)


@pytest.mark.parametrize(('ours', 'theirs', 'good'), [(False, True, False), (True, True, True), (False, None, True)])
def test_what_label_0_means(here, ours, theirs, good):
    """To the dataset and to the transform; mmseg would stop at the first image, and blame that."""
    Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save('images/0.png')
    Image.fromarray(np.zeros(SIZE, np.uint8)).save('maps/0.png')
    step = dict(type='LoadAnnotations', reduce_zero_label=theirs)
    dataset = dict(
        type='BaseSegDataset',
        data_prefix=dict(img_path='images', seg_map_path='maps'),
        img_suffix='.png',
        metainfo=dict(classes=('a', 'b')),
        reduce_zero_label=ours,
        pipeline=[dict(type='LoadImageFromFile'), step],
    )
    with enter('mmseg'):
        built = DATASETS.build(ConfigDict(dataset))
        found = list(check_dataset(ConfigDict(dataset), dict(decode_head=dict(num_classes=2)), 'the data', 0))
        found.append(find_zero_label_fault(built, built.pipeline.transforms))
    message = 'reduce_zero_label is True in LoadAnnotations, but False in BaseSegDataset: set both alike'
    assert [message in line for line in found if line] == [True] * (2 * (not good))


@pytest.mark.parametrize(('value', 'noted'), [(255, True), (1, False)])
def test_masks_of_0_and_255(here, value, noted):
    """All that is not background would be ignored."""
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save(f'images/{i}.png')
        Image.fromarray(np.where(np.eye(*SIZE), value, 0).astype(np.uint8)).save(f'maps/{i}.png')
    dataset = ConfigDict(
        type='BaseSegDataset',
        data_prefix=dict(img_path='images', seg_map_path='maps'),
        img_suffix='.png',
        metainfo=dict(classes=('a', 'b')),
    )
    with enter('mmseg'):
        found = list(check_dataset(dataset, dict(decode_head=dict(num_classes=2)), 'the data', None))
    note = (
        'note: the label maps that were looked at have no label but 0 beside 255, which is ignored: maps of 0 and 255'
    )
    assert [line.startswith(note) for line in found] == [True] * noted


def rle(*counts):
    return dict(size=list(SIZE), counts=list(counts))


WHOLE = SIZE[0] * SIZE[1]
COMPRESSED = coco_mask.encode(np.asfortranarray(np.eye(*SIZE, dtype=np.uint8)))['counts'].decode()


@pytest.mark.parametrize(
    ('mask', 'fault'),
    [
        (rle(10, 5, WHOLE - 15), ''),
        (dict(size=list(SIZE), counts=COMPRESSED), ''),
        (rle(WHOLE), 'empty'),  # found, and a training goes on
        (rle(10, 5), 'damaged'),
        (rle(10, 2 * WHOLE, 10), 'damaged'),
        (rle(10, -5, WHOLE - 5), 'damaged'),
        (dict(size=[9, 9], counts=[10, 5, 66]), 'damaged'),
        (dict(size=list(SIZE), counts=COMPRESSED[:-2]), 'damaged'),
        (dict(size=list(SIZE), counts='zzz'), 'damaged'),
    ],
    ids=str,
)
def test_run_lengths(mask, fault, here):
    """They are found, and a training of masks refuses those that are damaged; one of boxes does not need them."""
    Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save('images/0.png')
    entry = dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 5, 5], area=25, iscrowd=0, segmentation=mask)
    image = dict(id=1, file_name='0.png', height=SIZE[0], width=SIZE[1])
    content = dict(images=[image], annotations=[entry], categories=[dict(id=1, name='a')])
    Path('train.json').write_text(json.dumps(content))
    found = list(check_coco_file(Path('train.json'), ('a',), masks='any'))
    assert ['no mask with an area' in line for line in found] == [True] * bool(fault)
    for options in (dict(), dict(with_mask=True, poly2mask=False), dict(with_mask=True)):
        load = dict(type='LoadAnnotations', with_bbox=True, **options)
        with enter('mmdet'):
            dataset = DATASETS.build(
                dict(
                    type='CocoDataset',
                    ann_file='train.json',
                    data_prefix=dict(img='images'),
                    metainfo=dict(classes=('a',)),
                    pipeline=[dict(type='LoadImageFromFile'), load],
                )
            )
            guard_dataset(dataset, 1, None)
            if options and (fault == 'damaged' or 'poly2mask' in options):
                refused = 'has a run-length mask that is damaged or of another size'
                if 'poly2mask' in options:
                    refused = r'has run-length masks, and LoadAnnotations\(poly2mask=False\) leaves such objects out'
                with pytest.raises(DataError, match=f'0.png {refused}'):
                    dataset[0]
            else:
                assert len(dataset[0]['gt_bboxes']) == 1


@pytest.mark.parametrize(
    'mask',
    [
        dict(size=SIZE, counts=np.array([10, 5, WHOLE - 15])),
        dict(size=np.array(SIZE), counts=[10.0, 5.0, WHOLE - 15.0]),
        dict(size=list(SIZE), counts=COMPRESSED.encode()),
    ],
    ids=['tuple', 'array', 'bytes'],
)
def test_run_lengths_that_do_not_come_from_json(mask):
    assert covers(mask, *SIZE) and not covers(mask, SIZE[1], SIZE[0])


def test_labels_of_several_tasks():
    """Each task has its classes, so that the number of a head's is no limit for all."""
    pipeline = GuardedPipeline(Compose([]), labels=2)
    assert pipeline._check_label('a.jpg', dict(gt_label=dict(colour=5, shape=1))) is None
    with pytest.raises(DataError, match='a.jpg has the label 5'):
        pipeline._check_label('a.jpg', dict(gt_label=5))


def test_a_part_of_an_epoch():
    """With mmengine's num_batch_per_epoch, which puts a wrapper around the dataset that is none to look at."""
    dataset = ListOfOne('a.jpg', [])
    guard_dataset(_SlicedDataset(dataset, 1), None, None)
    assert isinstance(dataset.pipeline, GuardedPipeline)
