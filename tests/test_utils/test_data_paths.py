"""Missing data is found from the config alone, for the layouts of all three toolboxes."""

from pathlib import Path

import pytest
from mmengine.config import Config

from mmlavit.errors import UserError
from mmlavit.utils.data_paths import explain_missing, find_metrics, missing_data, require_data

CONFIGS = Path(__file__).parents[2] / 'configs'


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Data is looked for below the current folder."""
    monkeypatch.chdir(tmp_path)


def loader(**dataset) -> Config:
    return Config(dict(test_dataloader=dict(dataset=dataset)))


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        (
            'mask_rcnn_lavit_s.py',
            [
                'data/coco/annotations/instances_train2017.json',
                'data/coco/train2017/',
                'data/coco/annotations/instances_val2017.json',
                'data/coco/val2017/',
            ],
        ),
        (
            'upernet_lavit_s.py',
            [
                f'data/ade/ADEChallengeData2016/{kind}/{split}'
                for split in ('training', 'validation')
                for kind in ('images', 'annotations')
            ],
        ),
        ('lavit_s_in1k.py', ['data/imagenet/train', 'data/imagenet/val']),
        (
            'handwritten/classify_lavit_nano.py',
            ['data/handwritten/classification/train', 'data/handwritten/classification/val'],
        ),
    ],
)
def test_shipped_configs(name, expected):
    cfg = Config.fromfile(CONFIGS / name)
    assert missing_data(cfg, ['train', 'val']) == expected
    assert missing_data(cfg, ['test']) == expected[len(expected) // 2 :]
    for path in expected:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch() if target.suffix else target.mkdir()
    assert missing_data(cfg, ['train', 'val', 'test']) == []
    require_data(cfg, ['train', 'val', 'test'])


@pytest.mark.parametrize(
    ('dataset', 'expected'),
    [
        (dict(data_root='root', ann_file='a.json', data_prefix=dict(img='')), ['root/a.json', 'root/']),
        (dict(data_root='root/', ann_file='/abs/a.json', data_prefix=dict(img='x/')), ['/abs/a.json', 'root/x/']),
        (dict(data_root='root', data_prefix='train'), ['root/train']),
        (dict(data_root='root'), ['root/']),
        (dict(data_prefix=dict(img_path='i', seg_map_path='s')), ['i', 's']),
        (dict(type='ImageNet', data_root='r', split='val'), ['r/val']),
        (dict(type='mmpretrain.ImageNet', data_root='r', split='val', data_prefix='other'), ['r/other']),
        (dict(type='CIFAR10', data_root='r', split='train', download=False), ['r/']),
        (dict(type='RepeatDataset', times=2, dataset=dict(data_root='r', data_prefix='p')), ['r/p']),
        (dict(type='ConcatDataset', datasets=[dict(data_root='a'), dict(data_root='b')]), ['a/', 'b/']),
        (dict(type='InMemory'), []),
        (dict(data_root='s3://bucket/r', ann_file='a.json'), []),
        (dict(data_root='r', backend_args=dict(backend='petrel')), []),
        (dict(data_root='r', backend_args=dict(backend='local')), ['r/']),
        (dict(data_root='r', ann_file='a.json', data_prefix=dict(img='https://h/i/')), ['r/a.json']),
        (dict(data_prefix='s3://bucket/train'), []),
        (dict(data_root='r', ann_file='a.txt', pipeline=[dict(backend_args=dict(backend='lmdb'))]), ['r/a.txt']),
    ],
)
def test_structures(dataset, expected):
    assert missing_data(loader(**dataset), ['test']) == expected


def test_home_and_duplicates(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    cfg = loader(data_root='~/r', ann_file='a.json', data_prefix=dict(img=''))
    cfg.test_evaluator = [dict(type='A'), dict(type='CocoMetric', ann_file='~/r/a.json')]
    cfg.val_dataloader, cfg.val_evaluator = None, dict(type='MultiDatasetsEvaluator', metrics=cfg.test_evaluator)
    assert find_metrics(cfg.val_evaluator) == find_metrics(cfg.test_evaluator) == list(cfg.test_evaluator)
    assert find_metrics(dict(type='A')) == find_metrics(dict(metrics=dict(type='A'))) == [dict(type='A')]
    (tmp_path / 'r').mkdir()
    (tmp_path / 'r/a.json').touch()
    missing = missing_data(cfg, ['test'])
    assert missing == ['~/r/a.json', '~/r/']  # none of the toolboxes expands it
    assert explain_missing(cfg, missing) == 'write the home folder in full: datasets do not expand ~'
    cfg = loader(type='CustomDataset', ann_file='~/r/b.txt', data_prefix='')  # of mmpretrain, which does here
    assert missing_data(cfg, ['test']) == [f'{tmp_path}/r/b.txt']


def test_unused_splits_are_not_looked_at():
    cfg = loader(data_root='r')
    cfg.val_dataloader = None
    assert missing_data(cfg, ['train', 'val']) == []


def test_what_mmpretrain_downloads():
    data = dict(type='mmpretrain.CIFAR10', data_root='nowhere/')
    assert missing_data(loader(**data), ['test']) == []
    assert missing_data(loader(**data, download=False), ['test']) == ['nowhere/']


def test_message():
    datasets = [dict(data_root=f'r{i}') for i in range(6)]
    with pytest.raises(UserError) as caught:
        require_data(loader(datasets=datasets), ['test'])
    message = str(caught.value)
    assert message.startswith('missing data: r0/, r1/, r2/, r3/ and 2 more;')
    assert 'correct data_root, ann_file or data_prefix in the config' in message  # of data that we do not know
    assert 'handwritten' not in message
    assert '\n' not in message


def test_message_of_data_that_we_know(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r'data/coco/.*; docs/data\.md of mmlavit has the layout'):
        require_data(Config.fromfile(CONFIGS / 'retinanet_lavit_s.py'), ['val'])


def test_message_names_the_generator():
    cfg = Config.fromfile(CONFIGS / 'handwritten/upernet_lavit_nano.py')
    with pytest.raises(UserError, match=r'python tools/dataset_converters/handwritten\.py'):
        require_data(cfg, ['train'])


def test_own_data_of_such_a_name():
    cfg = loader(data_root='data/handwritten_forms/')
    object.__setattr__(cfg, '_filename', '/home/me/experiments/mine.py')
    assert explain_missing(cfg, missing_data(cfg, ['test'])).startswith('correct data_root, ann_file or data_prefix')


def test_message_of_experiments(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(CONFIGS / 'experiments/upernet_lavit_nano_camvid.py')
    with pytest.raises(
        UserError, match=r'data/camvid/images/val.*; configs/experiments/README\.md tells where to get it'
    ):
        require_data(cfg, ['val'])
