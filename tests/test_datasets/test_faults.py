"""Every fault of data in every task: found before a run, and named, or left out and counted, during one."""

import copy
from functools import cache
from types import SimpleNamespace

import pytest
from faults import ALL, FAULTS, HUGE, NUMBER, write_data
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmlavit.datasets.check.config import check_config
from mmlavit.engine.data import SKIPPED, watch_data
from mmlavit.errors import UserError
from mmlavit.utils.toolbox import load_toolbox


class FakeRunner:
    """As much of a Runner as builds a data loader."""

    build_dataloader = staticmethod(Runner.build_dataloader)

    def __init__(self, cfg):
        self._train_dataloader = cfg.train_dataloader
        self._val_dataloader = self._test_dataloader = None
        watch_data(self, cfg)

    def register_hook(self, hook):
        self.hook = hook


@cache
def read_config(text):
    """Most faults leave the config alone, and reading it takes longer than all else."""
    return Config.fromstring(text, '.py')


def prepare(folder, task, fault, monkeypatch):
    monkeypatch.chdir(folder)
    config = write_data(folder, task)
    fault.make(folder)
    cfg = copy.deepcopy(read_config(config.read_text()))
    cfg.work_dir = str(folder)
    load_toolbox(cfg.default_scope)
    init_default_scope(cfg.default_scope)
    return cfg


def read(cfg):
    """Build the training's data loader and read each image once; give the names of what came."""
    dataset = FakeRunner(cfg).build_dataloader(cfg.train_dataloader, seed=0).dataset
    return [dataset[i]['data_samples'].img_path for i in range(len(dataset))]


@pytest.mark.parametrize('task', FAULTS)
def test_nothing_is_wrong(task, tmp_path, monkeypatch):
    cfg = prepare(tmp_path, task, HUGE._replace(make=lambda folder: None), monkeypatch)
    assert list(check_config(cfg, None)) == []
    assert len(read(cfg)) == NUMBER


@pytest.mark.parametrize(('task', 'name'), ALL)
def test_check(task, name, tmp_path, monkeypatch):
    fault = FAULTS[task][name]
    found = list(check_config(prepare(tmp_path, task, fault, monkeypatch), None))
    if not fault.check:
        assert [line for line in found if not line.startswith('note: ')] == []
        return
    assert any(fault.check in line for line in found), found
    assert len(found) <= 2 and not any('\n' in line for line in found)


@pytest.mark.parametrize(('task', 'name'), ALL)
def test_training(task, name, tmp_path, monkeypatch):
    fault = FAULTS[task][name]
    cfg = prepare(tmp_path, task, fault, monkeypatch)
    if not fault.train:
        assert read(cfg)
        return
    with pytest.raises(UserError) as stopped:
        read(cfg)
    assert fault.train in str(stopped.value) and '\n' not in str(stopped.value)


@pytest.mark.parametrize(('task', 'name'), [(t, n) for t, n in ALL if FAULTS[t][n].train])
def test_skipping(task, name, tmp_path, monkeypatch):
    fault = FAULTS[task][name]
    cfg = prepare(tmp_path, task, fault, monkeypatch)
    cfg.skip_broken_data = True
    if not fault.skips:
        with pytest.raises(UserError):
            read(cfg)
        return
    read(cfg)
    lines = set((tmp_path / SKIPPED).read_text().splitlines())
    assert len(lines) == 1 and fault.train in lines.pop()


def test_validation_skips_nothing(tmp_path, monkeypatch):
    """Another image in the place of a broken one would count in the metrics. mmpretrain has no test_mode in configs."""
    cfg = prepare(tmp_path, 'classification', FAULTS['classification']['cut off'], monkeypatch)
    cfg.skip_broken_data = True
    validation = copy.deepcopy(cfg.train_dataloader)
    dataset = FakeRunner(cfg).build_dataloader(validation, seed=0).dataset
    with pytest.raises(UserError, match='1.jpg is cut off'):
        [dataset[i] for i in range(len(dataset))]


def test_a_new_pipeline_is_guarded_too(tmp_path, monkeypatch):
    """mmdet's hook for the last epochs replaces the pipeline."""
    cfg = prepare(tmp_path, 'detection', FAULTS['detection']['cut off'], monkeypatch)
    from mmdet.engine.hooks import PipelineSwitchHook

    cfg.skip_broken_data = True
    runner = FakeRunner(cfg)
    hooks = []
    runner.register_hook = hooks.append
    runner.build_dataloader = Runner.build_dataloader
    watch_data(runner, cfg)
    runner.train_dataloader = runner.build_dataloader(cfg.train_dataloader, seed=0)
    runner.epoch, runner.logger = 1, SimpleNamespace(info=str)
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='PackDetInputs'),
    ]
    PipelineSwitchHook(1, pipeline).before_train_epoch(runner)
    for hook in hooks:
        hook.before_train_epoch(runner)
    dataset = runner.train_dataloader.dataset
    assert len(dataset.pipeline.transforms) == 3 and len([dataset[i] for i in range(NUMBER)]) == NUMBER
    assert '1.jpg is cut off' in (tmp_path / SKIPPED).read_text()


@pytest.mark.parametrize('task', FAULTS)
def test_image_that_is_too_large(task, tmp_path, monkeypatch):
    """Found by its header; decoding it would take more memory than a test may."""
    cfg = prepare(tmp_path, task, HUGE, monkeypatch)
    (line,) = check_config(cfg, None)
    assert HUGE.check in line
