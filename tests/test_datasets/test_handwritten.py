"""The handwritten scenes: what is on the disk, read back with other people's libraries."""

import csv
import importlib.util
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip('sklearn')

from mmlavit.datasets import HandwrittenConfig, generate, handwritten
from mmlavit.datasets import handwritten_drawing as drawing
from mmlavit.errors import ConfigError
from mmlavit_serve.results import run_lengths

TINY = HandwrittenConfig(train_scenes=12, val_scenes=6, train_crops=20, val_crops=10)
CLI = Path(__file__).parents[2] / 'tools' / 'dataset_converters' / 'handwritten.py'


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp('tiny') / 'handwritten'
    generate(root, TINY, progress=False)
    return root


@pytest.fixture(scope='module')
def sources():
    return drawing.load_sources()


@pytest.fixture
def cli():
    spec = importlib.util.spec_from_file_location('handwritten_cli', CLI)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def contents(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob('*') if p.is_file()}


def coco_of(root, split):
    return json.loads((root / 'annotations' / f'{split}.json').read_text())


def crops_of(root, split):
    with open(root / 'classification' / f'{split}.csv', newline='') as file:
        return list(csv.DictReader(file))


# --- determinism ---------------------------------------------------------------------------------


def test_same_options_give_the_same_bytes(tiny, tmp_path):
    generate(tmp_path, TINY, progress=False)
    assert contents(tmp_path) == contents(tiny)


def test_another_seed_gives_other_pictures(tiny, tmp_path):
    generate(tmp_path, HandwrittenConfig(6, 6, train_crops=10, val_crops=10, seed=1), progress=False)
    ours, theirs = contents(tmp_path), contents(tiny)
    pictures = [name for name in ours if name.endswith('.png')]
    assert not any(ours[name] == theirs[name] for name in pictures)


def test_a_picture_does_not_depend_on_how_many_others_there_are(tiny, tmp_path):
    generate(tmp_path, HandwrittenConfig(3, 2, train_crops=7, val_crops=0), progress=False)
    ours, theirs = contents(tmp_path), contents(tiny)
    pictures = [name for name in ours if name.endswith('.png')]
    assert len(pictures) == 2 * (3 + 2) + 7
    assert all(ours[name] == theirs[name] for name in pictures)


# --- the split -----------------------------------------------------------------------------------


def test_scans_are_split_by_class_without_rest(sources):
    labels = sources.labels
    train, val = (np.concatenate(sources.pools[split]) for split in ('train', 'val'))
    assert sorted([*train, *val]) == list(range(1797))
    assert abs(len(train) / 1797 - 0.8) < 0.005
    for split in ('train', 'val'):
        for digit, pool in enumerate(sources.pools[split]):
            assert np.all(labels[pool] == digit)
            share = len(pool) / np.sum(labels == digit)
            assert abs(share - {'train': 0.8, 'val': 0.2}[split]) < 0.01


def test_identical_scans_stay_on_one_side_in_any_order(sources):
    scans = np.tile((16 * sources.scans[:200]).astype(np.uint8), (3, 1, 1))
    labels = np.tile(sources.labels[:200], 3)
    order = np.random.default_rng(0).permutation(len(scans))
    sides = []
    for index in (np.arange(len(scans)), order):
        pools = drawing.split_scans(scans[index], labels[index])
        train, val = ({scans[index][i].tobytes() for p in pools[s] for i in p} for s in pools)
        assert train and val and not train & val
        sides.append((train, val))
    assert sides[0] == sides[1]


def test_written_splits_share_no_scan(tiny, sources):
    used = {}
    for split in ('train', 'val'):
        annotations = coco_of(tiny, split)['annotations']
        assert all(sources.labels[a['scan']] == a['category_id'] - 1 for a in annotations)
        rows = crops_of(tiny, split)
        assert all(str(sources.labels[int(r['scan'])]) == r['file'][0] for r in rows)
        scans = [a['scan'] for a in annotations] + [int(r['scan']) for r in rows]
        used[split] = {sources.scans[scan].tobytes() for scan in scans}
    assert not used['train'] & used['val']


def test_written_backgrounds_come_from_disjoint_regions(tiny):
    edges = {}
    for split in ('train', 'val'):
        crops = [image['background']['crop'] for image in coco_of(tiny, split)['images']]
        crops += [[int(r[k]) for k in ('x', 'y', 'width', 'height')] for r in crops_of(tiny, split)]
        assert all(x >= 0 and y >= 0 and y + h <= 427 for x, y, _, h in crops)
        edges[split] = min(c[0] for c in crops), max(c[0] + c[2] for c in crops)
    assert edges['train'][1] <= edges['val'][0]
    assert edges['val'][1] <= 640


@pytest.mark.parametrize(('split', 'channel'), [('train', 0), ('val', 2)])
def test_backgrounds_read_no_pixel_of_the_other_side(sources, split, channel):
    photo = np.zeros((427, 640, 3), dtype=np.uint8)
    photo[:, :400, 0] = 200
    photo[:, 400:, 2] = 200
    fake = drawing.Sources(sources.scans, sources.labels, {'a.jpg': photo}, sources.pools)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        scene = drawing.draw_scene(fake, split, np.array([], dtype=int), 96, (28, 72), rng)
        assert np.all(scene.image.argmax(axis=2) == channel)


# --- annotations ---------------------------------------------------------------------------------


@pytest.mark.parametrize('split', ['train', 'val'])
def test_annotations_agree_with_pycocotools(tiny, split):
    mask_utils = pytest.importorskip('pycocotools.mask')
    coco = coco_of(tiny, split)
    assert [c['name'] for c in coco['categories']] == list('0123456789')
    assert [a['id'] for a in coco['annotations']] == list(range(1, len(coco['annotations']) + 1))
    for image in coco['images']:
        classes = cv2.imread(str(tiny / 'masks' / split / image['file_name']), -1)
        picture = cv2.imread(str(tiny / 'images' / split / image['file_name']), -1)
        assert classes.dtype == np.uint8
        assert classes.shape == (image['height'], image['width']) == (160, 160)
        assert picture.shape == (160, 160, 3)
        expected = np.zeros_like(classes)
        annotations = [a for a in coco['annotations'] if a['image_id'] == image['id']]
        assert 1 <= len(annotations) <= 9
        for annotation in annotations:
            rle = mask_utils.frPyObjects(annotation['segmentation'], 160, 160)
            mask = mask_utils.decode(rle).astype(bool)
            assert annotation['bbox'] == mask_utils.toBbox(rle).tolist()
            assert annotation['area'] == mask_utils.area(rle) == mask.sum() > 0
            assert annotation['iscrowd'] == 0
            assert not expected[mask].any(), 'visible parts must not overlap'
            expected[mask] = annotation['category_id']
        np.testing.assert_array_equal(classes, expected)


@pytest.mark.parametrize('first', [False, True])
def test_run_lengths_equal_those_of_pycocotools(first):
    mask_utils = pytest.importorskip('pycocotools.mask')
    mask = np.random.default_rng(0).random((37, 23)) < 0.3
    mask[0, 0] = first
    ours = mask_utils.frPyObjects(run_lengths(mask), 37, 23)
    theirs = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert ours['counts'] == theirs['counts']


def test_mmdet_reads_the_masks_and_scores_the_truth_with_one(tiny):
    pytest.importorskip('mmdet')
    torch = pytest.importorskip('torch')
    from mmdet.datasets import CocoDataset
    from mmdet.evaluation import CocoMetric

    annotation_file = str(tiny / 'annotations' / 'val.json')
    dataset = CocoDataset(
        ann_file=annotation_file,
        data_prefix=dict(img=str(tiny / 'images' / 'val')),
        metainfo=dict(classes=tuple('0123456789')),
        pipeline=[
            dict(type='mmdet.LoadImageFromFile'),
            dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='mmdet.PackDetInputs', meta_keys=('img_id', 'ori_shape')),
        ],
    )
    metric = CocoMetric(ann_file=annotation_file, metric=['bbox', 'segm'])
    metric.dataset_meta = dataset.metainfo
    assert len(dataset) == 6
    for item in dataset:
        sample = item['data_samples']
        truth = sample.gt_instances
        assert len(sample.ignored_instances) == 0
        predicted = dict(
            bboxes=truth.bboxes.tensor,
            labels=truth.labels,
            masks=torch.from_numpy(truth.masks.masks.astype(bool)),
            scores=torch.ones(len(truth)),
        )
        sample = dict(img_id=sample.img_id, ori_shape=sample.ori_shape, pred_instances=predicted)
        metric.process({}, [sample])
    scores = metric.evaluate(len(dataset))
    assert scores['coco/bbox_mAP'] == scores['coco/segm_mAP'] == 1


# --- pictures ------------------------------------------------------------------------------------


def test_classes_are_balanced():
    digits = [handwritten._planned_digits(HandwrittenConfig(), 'train', i) for i in range(70)]
    assert np.bincount([len(d) for d in digits]).tolist() == 3 * [0] + 7 * [10]
    assert np.bincount(np.concatenate(digits)).tolist() == 10 * [42]


def test_crops_are_balanced_and_of_the_right_size(tiny):
    for digit in range(10):
        for split, number in (('train', 2), ('val', 1)):
            files = sorted((tiny / 'classification' / split / str(digit)).iterdir())
            assert [f.name for f in files] == [f'{digit}_{i:06d}.png' for i in range(number)]
            assert all(cv2.imread(str(f), -1).shape == (64, 64, 3) for f in files)


def test_ink_on_top_is_even_and_stands_out(sources):
    """In the pictures alone: the visible part is one colour, and its surroundings are another."""
    spreads, contrasts = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        scene = drawing.draw_scene(sources, 'train', rng.integers(0, 10, 5), 160, (28, 72), rng)
        luma = cv2.cvtColor(scene.image, cv2.COLOR_RGB2GRAY).astype(float)
        for instance in scene.instances:
            mask = instance.mask.astype(np.uint8)
            core = cv2.erode(mask, np.ones((3, 3))) > 0
            ring = cv2.dilate(mask, np.ones((9, 9))) - cv2.dilate(mask, np.ones((3, 3))) > 0
            if core.any():
                spreads.append(luma[core].std())
                contrasts.append(np.mean(np.abs(luma[ring] - np.median(luma[core])) >= 40))
    assert len(spreads) > 190
    assert np.max(spreads) < 25
    assert np.percentile(contrasts, 5) > 0.8


def test_no_digit_is_hidden_by_later_ones(sources, monkeypatch):
    drawn = []
    paint = drawing._ink
    monkeypatch.setattr(drawing, '_ink', lambda *a: drawn.append(paint(*a)) or drawn[-1])
    overlapped = 0
    for seed in range(20):
        drawn.clear()
        rng = np.random.default_rng(seed)
        scene = drawing.draw_scene(sources, 'train', np.arange(6), 160, (28, 72), rng)
        if len(scene.instances) < 6:
            continue
        visible = [i.mask.sum() / (ink >= 0.5).sum() for i, ink in zip(scene.instances, drawn)]
        assert min(visible) >= drawing.MIN_VISIBLE
        overlapped += sum(v < 1 for v in visible)
    assert overlapped > 5, 'the scenes are meant to have overlaps'


def test_pictures_smaller_than_the_largest_turned_digit(tmp_path):
    config = HandwrittenConfig(5, 5, image_size=32, digit_size=(32, 32), train_crops=0, val_crops=0)
    summary = generate(tmp_path, config, progress=False)
    assert summary.counts['train']['instances'] >= 5
    assert not (tmp_path / 'classification').exists()


# --- rerun, repair, refuse -----------------------------------------------------------------------


def test_cli_round_trip(cli, tmp_path, capsys):
    root = tmp_path / 'new' / 'folder'
    args = f'--root {root} --train-scenes 2 --val-scenes 1 --train-crops 10 --val-crops 10'
    args += ' --image-size 96 --crop-size 32 --digits 2 2 --digit-size 20 30 --seed 5'
    cli.main(args.split())
    assert 'train 2 scenes with 4 digits and 10 crops from 1438 scans' in capsys.readouterr().out
    meta = json.loads((root / 'meta.json').read_text())
    assert meta['options'] == dict(
        train_scenes=2,
        val_scenes=1,
        image_size=96,
        digits=[2, 2],
        digit_size=[20, 30],
        train_crops=10,
        val_crops=10,
        crop_size=32,
        seed=5,
    )
    assert 'CC BY 4.0' in (root / 'README.txt').read_text()
    before = {p: p.stat().st_mtime_ns for p in root.rglob('*')}
    cli.main(args.split())
    assert 'up to date, nothing to do' in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in root.rglob('*')}


def test_cli_defaults_are_the_configs(cli):
    options = vars(cli.parse_args([]))
    assert options.pop('root') == Path('data/handwritten')
    assert options.pop('overwrite') is False
    assert HandwrittenConfig(**options) == HandwrittenConfig()


def test_interrupted_generation_is_repaired(cli, tiny, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    args = f'--root {tmp_path} --train-scenes 12 --val-scenes 6 --train-crops 20 --val-crops 10'
    with monkeypatch.context() as patch:
        patch.setattr(handwritten, '_write_crops', interrupt)
        with pytest.raises(SystemExit, match='run the same command again'):
            cli.main([*args.split(), '--train-scenes', '15'])
    assert not (tmp_path / 'meta.json').exists()
    cli.main(args.split())
    assert contents(tmp_path) == contents(tiny)


@pytest.mark.parametrize('lost', ['masks/val/000003.png', 'annotations/train.json'])
def test_missing_files_are_made_again(tmp_path, lost):
    config = HandwrittenConfig(2, 4, image_size=96, train_crops=0, val_crops=0)
    assert generate(tmp_path, config, progress=False).created
    before = contents(tmp_path)
    (tmp_path / lost).unlink()
    assert generate(tmp_path, config, progress=False).created
    assert contents(tmp_path) == before


def test_other_options_need_overwrite(cli, tmp_path, capsys):
    args = f'--root {tmp_path} --train-scenes 3 --val-scenes 0 --train-crops 0 --val-crops 0'
    cli.main(args.split())
    (tmp_path / 'mine.txt').write_text('keep me')
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        cli.main([*args.split(), '--train-scenes', '1'])
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith('error: ') and message.count('\n') == 1
    assert '--overwrite' in message and 'train_scenes 3 instead of 1' in message
    cli.main([*args.split(), '--train-scenes', '1', '--overwrite'])
    assert [p.name for p in (tmp_path / 'images' / 'train').iterdir()] == ['000000.png']
    assert (tmp_path / 'mine.txt').read_text() == 'keep me'


@pytest.mark.parametrize('overwrite', [False, True])
def test_foreign_folders_are_left_alone(tmp_path, overwrite):
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'annotations' / 'instances_train2017.json').write_text('{}')
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match='give another folder'):
        generate(tmp_path, TINY, overwrite=overwrite, progress=False)
    assert contents(tmp_path) == before


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ConfigError, match='is a file'):
        generate(tmp_path / 'file', TINY, progress=False)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(train_scenes=-1), 'train_scenes must be at least 0, got -1'),
        (dict(seed=-1), 'seed must be at least 0'),
        (dict(crop_size=8), 'crop_size must be at least 32'),
        (dict(digits=(3, 2)), '1 <= smallest <= largest, got 3 2'),
        (dict(digits=(0, 2)), 'digits must be two numbers'),
        (dict(image_size=56), 'digits of 60 px do not fit images of 56 px'),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ConfigError, match=message):
        HandwrittenConfig(**options)


def test_missing_scikit_learn_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    with pytest.raises(ConfigError, match='pip install scikit-learn') as error:
        generate(tmp_path / 'data', TINY, progress=False)
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'data').exists()
