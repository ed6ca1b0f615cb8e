"""tools/check_data.py on datasets in miniature, whole and with one thing wrong at a time."""

import json
import re
from pathlib import Path

import faults
import numpy as np
import pytest
import synthetic
from PIL import Image
from tool_runs import run_tool

from mmlavit.datasets.check import named
from mmlavit.datasets.check.evaluators import find_evaluator_faults
from mmlavit.utils.toolbox import load_toolbox

ROOT = Path(__file__).parents[2]
COCO, ADE, IMAGENET = Path('data/coco'), Path('data/ade/ADEChallengeData2016'), Path('data/imagenet')
HANDWRITTEN = Path('data/handwritten')
SPLITS = ('train', 'val')


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder with all four datasets in miniature, as the current one; counts are theirs."""
    monkeypatch.chdir(tmp_path)
    synthetic.write_coco(tmp_path)
    synthetic.write_ade20k(tmp_path)
    synthetic.write_handwritten(tmp_path)
    for split, number in zip(SPLITS, (3, 1)):
        for label in range(4):
            for index in range(number):
                path = IMAGENET / split / f'n{label:08d}/{index}.JPEG'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new('RGB', (8, 8)).save(path)
    monkeypatch.setattr(named, 'COCO_COUNTS', {'train2017': (2, 2), 'val2017': (2, 2)})
    monkeypatch.setattr(named, 'ADE20K_COUNTS', {'training': 2, 'validation': 2})
    monkeypatch.setattr(named, 'IMAGENET_COUNTS', {'train': 12, 'val': 4})
    monkeypatch.setattr(named, 'IMAGENET_CLASSES', 4)


@pytest.fixture
def check_data(monkeypatch, capsys):
    """Run the script in this process; give its exit code and output."""

    def run(*args):
        return run_tool(monkeypatch, 'check_data.py', *args), capsys.readouterr()

    return run


def test_whole(data, check_data):
    code, said = check_data('coco', 'ade20k', 'imagenet', 'handwritten')
    assert code == 0, said
    assert [line.split(':')[0] for line in said.out.splitlines()] == ['coco', 'ade20k', 'imagenet', 'handwritten']
    assert said.out.count(': OK, ') == 4


def cut(path):
    """Keep the first half of a file."""
    return lambda: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(path, change):
    """Change the content of a JSON file."""

    def run():
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return run


def move_val_out():
    for path in sorted((IMAGENET / 'val').glob('*/*')):
        path.rename(IMAGENET / f'val/{path.parent.name}_{path.name}')


PICTURE = COCO / 'train2017/000000000001.jpg'
TRAIN_JSON = COCO / 'annotations/instances_train2017.json'
LABELS = ADE / 'annotations/training/0.png'
CLASS = IMAGENET / 'train/n00000002'


@pytest.mark.parametrize(
    ('name', 'breaks', 'findings'),
    [
        (
            'coco',
            PICTURE.unlink,
            [
                'data/coco/train2017 has 1 images, expected 2: unpack train2017.zip again',
                'data/coco/train2017 misses 1 files that belong to others (000000000001.jpg)',
            ],
        ),
        ('coco', cut(PICTURE), ['data/coco/train2017: 1 of 2 images cannot be decoded (000000000001.jpg)']),
        ('coco', cut(TRAIN_JSON), [f'{TRAIN_JSON} is cut off or damaged: unpack annotations_trainval2017.zip']),
        ('coco', TRAIN_JSON.unlink, [f'{TRAIN_JSON} does not exist: unpack annotations_trainval2017.zip']),
        (
            'coco',
            edit(TRAIN_JSON, lambda content: content['annotations'].pop()),
            [f'{TRAIN_JSON} has 1 annotations, expected 2'],
        ),
        ('coco', edit(TRAIN_JSON, lambda content: content.pop('categories')), [f'{TRAIN_JSON} has no categories']),
        (
            'ade20k',
            LABELS.unlink,
            [f'{LABELS.parent} has 1 images, expected 2', f'{LABELS.parent} misses 1 files'],
        ),
        (
            'ade20k',
            lambda: Image.fromarray(np.full((5, 5), 151, np.uint8)).save(LABELS),
            [f'{LABELS.parent}: 1 of 2 are not label maps with values from 0 to 150 (0.png)'],
        ),
        (
            'ade20k',
            lambda: (ADE / 'images').rename(ADE / 'other'),
            ['images/training does not exist', 'images/validation does'],
        ),
        ('imagenet', (CLASS / '1.JPEG').unlink, ['data/imagenet/train has 11 images, expected 12: unpack ILSVRC']),
        (
            'imagenet',
            move_val_out,
            ['data/imagenet/val has 4 images outside of class folders: move', 'data/imagenet/val'],
        ),
        (
            'imagenet',
            lambda: CLASS.rename(CLASS.with_name('other')),
            ['data/imagenet: train/ and val/ differ in class folders (n00000002, other)'],
        ),
        (
            'imagenet',
            lambda: (IMAGENET / 'train/extra').mkdir(),
            [
                'train has 5 class folders, expected 4',
                'has 1 empty class folders (extra)',
                'differ in class folders (extra)',
            ],
        ),
        ('handwritten', cut(HANDWRITTEN / 'masks/val/000001.png'), ['masks/val: 1 of 3 images cannot be decoded']),
        (
            'handwritten',
            (HANDWRITTEN / 'classification/train/3/3_000002.png').unlink,
            ['classification/train has 63 images, expected 64: run python tools/dataset_converters/handwritten.py'],
        ),
        (
            'handwritten',
            (HANDWRITTEN / 'meta.json').unlink,
            ['no meta.json of theirs: remove images, annotations, masks, classification, README.txt there, then run'],
        ),
        (
            'handwritten',
            lambda: (HANDWRITTEN / 'meta.json').write_text('[]'),
            ['data/handwritten has no meta.json of theirs: remove images, annotations, masks, classification, README'],
        ),
    ],
)
def test_findings(name, breaks, findings, data, check_data):
    breaks()
    code, said = check_data(name)
    assert code == 1
    *lines, last = said.out.splitlines()
    assert last.startswith(f'{name}: {len(lines)} finding')
    assert len(lines) == len(findings)
    for line, finding in zip(lines, findings):
        assert line.startswith(f'{name}: ')
        assert finding in line


def test_nothing_is_decoded_when_not_asked(data, check_data):
    cut(PICTURE)()
    assert check_data('coco', '--decode', '0')[0] == 0


def test_list_instead_of_folders(data, check_data):
    """The other layout that mmpretrain reads: val/ without class folders, and a list of labels."""
    move_val_out()
    names = sorted(path.name for path in (IMAGENET / 'val').glob('*.JPEG'))
    (IMAGENET / 'meta').mkdir()
    lines = [f'{name} {label}' for label, name in enumerate(names)]
    (IMAGENET / 'meta/val.txt').write_text('\n'.join(lines))
    code, said = check_data('imagenet')
    assert code == 0, said
    (IMAGENET / 'meta/val.txt').write_text('\n'.join(f'{name} {label + 1}' for label, name in enumerate(names)))
    code, said = check_data('imagenet')
    assert code == 1 and 'has labels from 1 to 4; mmpretrain counts from 0' in said.out
    (IMAGENET / 'meta/val.txt').write_text('\n'.join([*lines[:-1], 'other.JPEG 2']))
    code, said = check_data('imagenet')
    assert code == 1
    assert 'lists 4 images of 3 classes, expected 4 of 4' in said.out
    assert 'misses 1 files that belong to others (other.JPEG)' in said.out


@pytest.mark.parametrize('name', named.DATA_SETS)
def test_missing(name, tmp_path, check_data, monkeypatch):
    """It says where to get it and under what terms, and gets nothing."""
    monkeypatch.chdir(tmp_path)
    code, said = check_data(name)
    data = named.DATA_SETS[name]
    assert code == 1
    assert said.out.startswith(f'{name}: {data.root} does not exist')
    assert data.source in said.out and data.terms in said.out
    assert said.out.count('\n') == 1
    assert not list(tmp_path.iterdir())


def test_roots_are_those_of_the_configs():
    from mmengine.config import Config

    for name, base in (('coco', 'coco_detection'), ('ade20k', 'ade20k'), ('imagenet', 'imagenet_224')):
        cfg = Config.fromfile(ROOT / f'configs/_base_/datasets/{base}.py')
        assert Path(cfg.data_root) == Path(named.DATA_SETS[name].root)


def test_root(data, check_data, tmp_path):
    COCO.rename('elsewhere')
    assert check_data('coco')[0] == 1
    assert check_data('coco', '--root', 'elsewhere')[0] == 0
    code, said = check_data('coco', 'ade20k', '--root', 'elsewhere')
    assert code == 2
    assert said.err == 'error: --root elsewhere is for one dataset, but 2 are named\n'
    code, said = check_data('coco', '--decode', '-1')
    assert code == 2
    assert said.err == 'error: --decode -1: expected 0 or more, or all\n'


def test_config(tmp_path, monkeypatch, check_data):
    """The data of a config, whole and then with a cut-off image and a head of other classes."""
    monkeypatch.chdir(tmp_path)
    config = faults.write_data(tmp_path, 'detection')
    code, said = check_data(config.name)
    assert code == 0 and re.fullmatch(r'detection.py: OK, no fault in its data \(\d+ s\)\n', said.out)
    faults.FAULTS['detection']['cut off'].make(tmp_path)
    faults.FAULTS['detection']['image without objects'].make(tmp_path)
    # Found without decoding all images, since the file does not end as it should.
    code, said = check_data(config.name, '--decode', '0', '--cfg-options', 'model.roi_head.bbox_head.num_classes=3')
    note, head, cut_off, last = said.out.splitlines()
    assert code == 1 and last.startswith('detection.py: 2 findings')
    assert note.startswith('detection.py: note: data/train.json: 1 of 6 images have no objects')
    assert 'model.roi_head.bbox_head.num_classes is 3, but train_dataloader has 2 classes (one, two)' in head
    assert cut_off == 'detection.py: data/images/1.jpg is cut off: get it again'


def test_an_evaluator_with_a_file_of_its_own(tmp_path, monkeypatch, check_data, capsys):
    """It has to be about the same images; it may have other annotations of them."""
    monkeypatch.chdir(tmp_path)
    config = faults.write_data(tmp_path, 'detection')
    other = tmp_path / 'data/other.json'
    content = json.loads((tmp_path / 'data/train.json').read_text())
    config.write_text(
        config.read_text().replace('val_cfg = val_dataloader = val_evaluator = ', '')
        + "val_cfg = dict()\nval_evaluator = dict(type='CocoMetric', ann_file='data/other.json', metric='bbox')\n"
        "val_dataloader = dict(batch_size=1, num_workers=0, dataset=data, sampler=dict(type='DefaultSampler'))\n"
    )

    def write(change):
        changed = json.loads(json.dumps(content))
        change(changed)
        other.write_text(json.dumps(changed))

    write(lambda c: c.update(annotations=c['annotations'][1:], images=[*c['images'], dict(id=9, file_name='more.jpg')]))
    code, said = check_data(config.name)
    assert code == 0, said
    write(lambda c: c['images'][0].update(file_name=f'folder/{c["images"][0]["file_name"]}'))  # without data_prefix
    code, said = check_data(config.name)
    assert code == 0, said
    ids = 'the evaluator reads data/other.json, but its dataset data/train.json: 2 of the 6 images of the dataset '
    new = dict(content['annotations'][0], id=99, image_id=9)
    for change, fault in (
        (lambda c: c['images'].append(c['images'].pop(0) | dict(id=1)) or c['images'].pop(0), ids + '(0.jpg, 1.jpg)'),
        (lambda c: c['categories'].reverse(), 'data/other.json has its categories in another order'),
        (
            lambda c: c.update(annotations=[*c['annotations'], new], images=[*c['images'], dict(id=9, file_name='m')]),
            'the evaluator reads data/other.json, and counts the objects of 1 images there (m) as missed',
        ),
        (lambda c: c['annotations'][1].update(id='a'), 'data/other.json: 1 annotations have an id that is no number'),
        (lambda c: c['annotations'][1].pop('iscrowd'), 'data/other.json: 1 annotations have no iscrowd of 0 or 1'),
        (lambda c: c.pop('annotations'), 'data/other.json has none, so nothing can be measured: set format_only=True'),
    ):
        write(change)
        code, said = check_data(config.name)
        assert code == 1 and fault in said.out and '1 finding ' in said.out
        assert run_tool(monkeypatch, 'train.py', config.name) == 2
        assert f'error: {fault}' in capsys.readouterr().err


def test_evaluation_of_a_part_of_the_images(tmp_path):
    """pycocotools counts the objects of all images in its file."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    faults.write_data(tmp_path, 'detection')
    file = tmp_path / 'data/train.json'
    content = json.loads(file.read_text())
    found = [dict(entry, score=0.9) for entry in content['annotations'] if entry['image_id'] < 2]
    truth = COCO(file)
    evaluation = COCOeval(truth, truth.loadRes(found), 'bbox')
    evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
    assert evaluation.stats[0] < 0.9
    metric = dict(type='mmdet.CocoMetric', ann_file=str(file), metric=['bbox', 'segm'])
    load_toolbox('mmdet')
    assert [*find_evaluator_faults(metric, str(file), None)] == []
    # Objects of classes that the dataset does not have are not counted.
    more = {**content, 'categories': [*content['categories'], dict(id=9, name='other')]}
    more['images'] = [*content['images'], dict(content['images'][0], id=9, file_name='more.jpg')]
    more['annotations'] = [*content['annotations'], dict(content['annotations'][0], id=99, image_id=9, category_id=9)]
    (tmp_path / 'more.json').write_text(json.dumps(more))
    other = dict(metric, ann_file=str(tmp_path / 'more.json'))
    assert [*find_evaluator_faults(other, str(file), ('one', 'two'))] == []
    (fault,) = find_evaluator_faults(other, str(file), None)
    assert 'counts the objects of 1 images there (more.jpg) as missed' in fault
    # Images of the same numbers in another folder are others; but the folder may be in data_prefix.
    folders = {}
    for folder in ('a/', 'b/'):
        images = [{**image, 'file_name': folder + image['file_name']} for image in content['images']]
        folders[folder] = tmp_path / f'{folder[0]}.json'
        folders[folder].write_text(json.dumps({**content, 'images': images}))
    away = dict(metric, ann_file=str(folders['a/']))
    assert [*find_evaluator_faults(away, str(file), None)] == []
    (fault,) = find_evaluator_faults(away, str(folders['b/']), None)
    assert 'are not there, or by another id' in fault
    several = dict(type='mmdet.MultiDatasetsEvaluator', metrics=[metric, away])  # each for one of two datasets
    assert [*find_evaluator_faults(several, str(folders['b/']), None, alone=False)] == []
    (fault,) = find_evaluator_faults(metric, str(file), None, indices=2)
    assert 'has indices=2, and the evaluator counts the objects of all other images' in fault
    content['annotations'][0]['segmentation'].append([1, 1, 5, 5])  # does no harm there
    file.write_text(json.dumps(content))
    assert [*find_evaluator_faults(metric, str(file), None)] == []
    content['annotations'][0]['segmentation'].reverse()
    content['annotations'][1]['id'] = 0
    file.write_text(json.dumps(content))
    note, fault = find_evaluator_faults(metric, str(file), None)
    assert note.startswith(f"note: {file}: 1 annotations have the id 0, which COCO's evaluation takes for no object")
    assert '1 annotations have a first polygon of fewer than three points' in fault
    content['annotations'][0]['segmentation'] = []
    content['annotations'][1]['id'] = 50
    file.write_text(json.dumps(content))
    (fault,) = find_evaluator_faults(metric, str(file), None)
    assert '1 annotations have no mask, which the evaluation needs' in fault
    names = {entry['id']: entry['name'] for entry in content['categories']}
    others = [name for key, name in names.items() if key != content['annotations'][0]['category_id']]
    assert [*find_evaluator_faults(metric, str(file), others)] == []


def test_classes_that_do_not_fit(tmp_path, monkeypatch, check_data, capsys):
    """Names in another order than their folders; a metric that wants more classes than there are."""
    monkeypatch.chdir(tmp_path)
    config = faults.write_data(tmp_path, 'classification')
    for i, path in enumerate(sorted((tmp_path / 'data/images').glob('*.jpg'))):
        folder = path.parent / ('daisy', 'rose')[i % 2]
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    text = config.read_text().replace("ann_file='../train.txt', metainfo=dict(classes=('one', 'two')),", '')
    metric = "val_cfg = dict()\nval_dataloader = train_dataloader\nval_evaluator = dict(type='Accuracy', topk=(1, 5))\n"
    order = 'images/: images in the folder daisy would be called rose, since metainfo.classes has another order'
    for changed, fault in (
        (text, ''),
        (text.replace('data = dict(', "data = dict(metainfo=dict(classes=['rose', 'daisy']), "), order),
        (text + metric, 'the evaluator asks for the top-5 accuracy, but there are 2 classes'),
    ):
        config.write_text(changed)
        code, said = check_data(config.name)
        assert code == bool(fault) and fault in said.out, said
        if fault:
            assert run_tool(monkeypatch, 'train.py', config.name) == 2
            assert fault in capsys.readouterr().err


def test_note_is_no_fault(tmp_path, monkeypatch, check_data):
    monkeypatch.chdir(tmp_path)
    config = faults.write_data(tmp_path, 'detection')
    faults.FAULTS['detection']['image without objects'].make(tmp_path)
    code, said = check_data(config.name, '--decode', 'all')
    assert code == 0 and said.out.count('\n') == 2 and 'OK' in said.out


def test_config_without_its_data(tmp_path, monkeypatch, check_data):
    monkeypatch.chdir(tmp_path)
    code, said = check_data(ROOT / 'configs/mask_rcnn_lavit_s.py')
    assert code == 1
    assert (
        'data/coco/annotations/instances_train2017.json does not exist: docs/data.md of mmlavit has the layout'
        in said.out
    )


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['cocoa'], 'cocoa is neither a config (.py) nor one of coco, ade20k, imagenet, handwritten'),
        (['no.py'], 'config no.py does not exist; expected the path of a config file'),
        (['no.py', '--root', 'x'], '--root x is for one dataset, but no.py is a config'),
        (['coco', '--cfg-options', 'a=1'], '--cfg-options changes a config, but none is named'),
        (['coco', '--decode', 'some'], '--decode some: expected 0 or more, or all'),
    ],
)
def test_mistakes(args, message, check_data):
    code, said = check_data(*args)
    assert code == 2 and said.err == f'error: {message}\n'
