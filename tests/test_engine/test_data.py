"""What the engine says about data that it cannot put together, and how it reads class names."""

import json
from types import SimpleNamespace

import pytest
import torch
from faults import write_coco
from mmengine.config import Config
from mmengine.logging import MessageHub

from mmlavit.engine import data
from mmlavit.engine.data import SkippedDataHook, _read_categories, explain_sizes
from mmlavit.errors import ConfigError, DataError


def test_images_of_different_sizes():
    with pytest.raises(ConfigError, match=r'different sizes \(\[3, 4, 5\] and \[3, 4, 6\]\); let the pipeline'):
        with explain_sizes():
            torch.stack([torch.ones(3, 4, 5), torch.ones(3, 4, 6)])
    with pytest.raises(RuntimeError, match='something else'), explain_sizes():
        raise RuntimeError('something else')


def test_count_of_what_was_left_out(tmp_path):
    file, hub, said = tmp_path / 'skipped.txt', MessageHub.get_instance('test_data'), []
    runner = SimpleNamespace(iter=0, message_hub=hub, logger=SimpleNamespace(warning=said.append))
    hook = SkippedDataHook(file)
    for runner.iter in range(100):
        if runner.iter in (30, 40, 60):
            with file.open('a') as opened:
                opened.write('a.jpg is cut off\n' if runner.iter < 50 else 'b.jpg is empty\n')
        hook.after_train_iter(runner, runner.iter)
        if runner.iter == 60:
            assert hub.get_scalar('train/skipped_images').current() == 1  # a.jpg, twice
    hook.after_train(runner)
    assert hub.get_scalar('train/skipped_images').current() == 2
    assert said == [f'Images left out so far: {number}; {file} says which and why' for number in (1, 2)]


@pytest.mark.parametrize('order', [['categories', 'images'], ['images', 'categories']])
def test_categories(order, tmp_path):
    file = tmp_path / 'train.json'
    write_coco(file)
    content = json.loads(file.read_text())
    content['categories'][0]['keypoints'] = ['a ] b', '"categories": [']
    content['info'] = dict(categories='of animals')
    file.write_text(json.dumps({key: content[key] for key in ('info', *order, 'annotations')}))
    assert [one['name'] for one in _read_categories(str(file))] == ['one', 'two']


def test_categories_before_something_of_that_name(tmp_path, monkeypatch):
    """The names are then read from the whole file."""
    file = tmp_path / 'train.json'
    write_coco(file)
    content = json.loads(file.read_text())
    dataset = SimpleNamespace(metainfo=dict(classes=('one', 'two')), ann_file=str(file))
    monkeypatch.setattr(data, 'reads_coco', lambda kind: True)
    monkeypatch.setattr(data, 'require_classes', lambda *args: None)
    for other in ([1], 'of animals', [dict(name='none of ours')]):
        content = dict(categories=content['categories'], **{k: v for k, v in content.items() if k != 'categories'})
        content['images'][0]['tag'] = dict(categories=other)
        content['images'][0]['more'] = list(range(20_000)), [[]] * 2000  # brackets, one of which is the last
        file.write_text(json.dumps(content))
        data._require_fitting_classes(dataset, Config(dict(model={})), (), True)
    dataset.metainfo['classes'] = ('one', 'three')
    with pytest.raises(DataError, match='has no categories three'):
        data._require_fitting_classes(dataset, Config(dict(model={})), (), True)


@pytest.mark.parametrize('resume', [False, True])
def test_a_new_training_begins_a_new_list(resume, tmp_path):
    file = tmp_path / 'skipped.txt'
    file.write_text('a.jpg is cut off\n')
    SkippedDataHook(file).before_train(SimpleNamespace(_resume=resume))
    assert file.is_file() == resume


def test_the_message_of_a_worker():
    """torch raises an error of a data loader's worker again, with a trace as its message."""
    trace = 'Caught DataError in DataLoader worker process 0.\nOriginal ...\nmmlavit.errors.DataError: x.jpg is cut\n'
    assert str(DataError(trace)) == 'x.jpg is cut'
    assert str(DataError('x.jpg is cut')) == 'x.jpg is cut'
