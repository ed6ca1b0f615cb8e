"""The merge of the command line into a config."""

import argparse
import copy
import sys

import pytest
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.optim import OptimWrapper

from mmlavit.errors import UserError
from mmlavit.utils.arguments import add_common_arguments, merge_test_args, merge_train_args
from mmlavit.utils.config_files import load_config, merge_options
from mmlavit.utils.config_types import type_name


def make_config(scope='mmdet', **entries) -> Config:
    pipeline = [dict(type='LoadImageFromFile'), dict(type='Pack')]
    return Config(
        dict(
            default_scope=scope,
            model=dict(type='Model', backbone=dict(type='LaViT', arch='small')),
            train_dataloader=dict(batch_size=2, num_workers=2, dataset=dict(type='A', pipeline=pipeline)),
            val_dataloader=dict(batch_size=1, num_workers=0, persistent_workers=True, dataset=dict(type='A')),
            test_dataloader=dict(batch_size=1, num_workers=2, dataset=dict(type='A', pipeline=pipeline)),
            val_cfg=dict(),
            val_evaluator=dict(type='Metric'),
            test_cfg=dict(),
            test_evaluator=dict(type='Metric'),
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1.0)),
            param_scheduler=[dict(type='LinearLR', end=500), dict(type='MultiStepLR', end=12)],
            train_cfg=dict(max_epochs=12, val_interval=1),
            **entries,
        )
    )


def train_args(**given) -> argparse.Namespace:
    default = dict(config='configs/some_model.py', work_dir=None, amp=False, resume=None)
    return argparse.Namespace(**{**default, 'auto_scale_lr': False, 'launcher': 'none', **given})


def test_args(**given) -> argparse.Namespace:
    default = dict(config='configs/some_model.py', checkpoint='some.pth', work_dir=None, out=None, tta=False)
    default.update(runtime=None)
    default.update(show=False, show_dir=None, wait_time=2.0, launcher='none')
    return argparse.Namespace(**{**default, **given})


test_args.__test__ = False


def test_merging_leaves_the_config_alone():
    cfg = make_config(tta_model=dict(type='T'), tta_pipeline=[dict(type='P')], auto_scale_lr=dict(base_batch_size=8))
    before = cfg.pretty_text
    merge_train_args(cfg, train_args(amp=True, auto_scale_lr=True, resume='auto', work_dir='w'))
    merge_test_args(cfg, test_args(tta=True, show_dir='d', out='x.pkl'))
    merge_options(cfg, {'model.backbone.arch': 'tiny'})
    assert cfg.pretty_text == before


@pytest.mark.parametrize(
    ('in_config', 'in_args', 'expected'),
    [
        ({}, None, 'work_dirs/some_model'),
        ({'work_dir': 'from_config'}, None, 'from_config'),
        ({'work_dir': 'from_config'}, 'from_args', 'from_args'),
    ],
)
def test_work_dir(in_config, in_args, expected):
    assert merge_train_args(make_config(**in_config), train_args(work_dir=in_args)).work_dir == expected
    assert merge_test_args(make_config(**in_config), test_args(work_dir=in_args)).work_dir == expected


@pytest.mark.parametrize(
    ('given', 'resume', 'load_from'),
    [(None, False, 'start.pth'), ('auto', 'auto', 'start.pth'), ('other.pth', True, 'other.pth')],
)
def test_resume(given, resume, load_from):
    cfg = merge_train_args(make_config(load_from='start.pth', resume=False), train_args(resume=given))
    assert (cfg.resume, cfg.load_from) == (resume, load_from)


def test_amp():
    cfg = merge_train_args(make_config(), train_args(amp=True))
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.loss_scale == 'dynamic'
    cfg.optim_wrapper.type = 'DeepSpeedOptimWrapper'
    with pytest.raises(UserError, match='DeepSpeedOptimWrapper'):
        merge_train_args(cfg, train_args(amp=True))


def test_types_that_are_classes():
    cfg = make_config()
    cfg.optim_wrapper.type = OptimWrapper
    assert merge_train_args(cfg, train_args(amp=True)).optim_wrapper.type == 'AmpOptimWrapper'
    assert [type_name(dict(type=kind)) for kind in ('mmdet.EMAHook', EMAHook, 'EMAHook')] == 3 * ['EMAHook']
    assert (type_name({}, 'DDPStrategy'), type_name(None)) == ('DDPStrategy', '')


def test_auto_scale_lr():
    cfg = make_config(auto_scale_lr=dict(enable=False, base_batch_size=16))
    assert merge_train_args(cfg, train_args(auto_scale_lr=True)).auto_scale_lr.enable
    with pytest.raises(UserError, match='base_batch_size'):
        merge_train_args(make_config(), train_args(auto_scale_lr=True))


def test_loaders():
    cfg = merge_train_args(make_config('mmpretrain'), train_args())
    # What mmpretrain's own script adds.
    assert cfg.train_dataloader.collate_fn == dict(type='default_collate')
    assert cfg.train_dataloader.persistent_workers and cfg.train_dataloader.pin_memory
    assert not cfg.val_dataloader.persistent_workers  # it has no workers
    cfg = merge_train_args(make_config('mmdet'), train_args())
    assert 'collate_fn' not in cfg.train_dataloader
    assert not cfg.val_dataloader.persistent_workers


def test_missing_loader():
    cfg = make_config()
    cfg.train_dataloader = cfg.test_dataloader = None
    with pytest.raises(UserError, match='some_model.py has no train_dataloader'):
        merge_train_args(cfg, train_args())
    with pytest.raises(UserError, match='some_model.py has no test_dataloader'):
        merge_test_args(cfg, test_args())


@pytest.mark.parametrize('split', ['val', 'test'])
def test_a_part_of_a_split(split):
    cfg = make_config()
    cfg[f'{split}_dataloader'] = None
    message = f'has {split}_cfg and {split}_evaluator, but no {split}_dataloader; set all three, or none'
    with pytest.raises(UserError, match=message):
        merge_train_args(cfg, train_args())


def test_missing_optimizer():
    cfg = make_config()
    cfg.pop('optim_wrapper')
    with pytest.raises(UserError, match='some_model.py has no optim_wrapper, so it cannot train'):
        merge_train_args(cfg, train_args())
    merge_test_args(cfg, test_args())


def test_checkpoint_is_loaded():
    cfg = merge_test_args(make_config(resume=True), test_args())
    assert (cfg.load_from, cfg.resume) == ('some.pth', False)


def test_testing_needs_no_strategy():
    cfg = make_config(runner_type='FlexibleRunner', strategy=dict(type='FSDPStrategy'))
    assert not {'runner_type', 'strategy'} & merge_test_args(cfg, test_args()).keys()
    assert merge_train_args(cfg, train_args()).strategy == cfg.strategy


def test_out_file():
    det = merge_test_args(make_config('mmdet'), test_args(out='x.pkl'))
    assert [metric.type for metric in det.test_evaluator] == ['Metric', 'DumpDetResults']
    assert det.test_evaluator[1].out_file_path == 'x.pkl'
    cls = make_config('mmpretrain')
    cls.test_evaluator = [dict(type='A'), dict(type='B')]
    assert merge_test_args(cls, test_args(out='x.pickle')).test_evaluator[2].type == 'DumpResults'
    cls.test_evaluator = dict(type='Evaluator', metrics=dict(type='A'))
    merged = merge_test_args(cls, test_args(out='x.pkl'))
    assert [metric.type for metric in merged.test_evaluator.metrics] == ['A', 'DumpResults']


def test_out_needs_an_evaluator_that_writes():
    several = dict(type='MultiDatasetsEvaluator', metrics=[dict(type='A')], dataset_prefixes=['a'])
    with pytest.raises(UserError, match='--out x.pkl does not work with MultiDatasetsEvaluator; test one dataset'):
        cfg = make_config()
        cfg.test_evaluator = several
        merge_test_args(cfg, test_args(out='x.pkl'))
    with pytest.raises(UserError, match='has test_dataloader and test_cfg, but no test_evaluator; set all three'):
        cfg = make_config()
        cfg.test_evaluator = None
        merge_test_args(cfg, test_args(out='x.pkl'))


def test_a_list_of_loaders():
    cfg = make_config()
    cfg.val_dataloader = [cfg.val_dataloader]
    with pytest.raises(UserError, match='val_dataloader is a list, expected a dict; several datasets: ConcatDataset'):
        merge_train_args(cfg, train_args())


def test_out_folder_is_for_segmentation():
    seg = merge_test_args(make_config('mmseg'), test_args(out='maps'))
    assert [metric.output_dir for metric in seg.test_evaluator] == ['maps']
    with pytest.raises(UserError, match='.pkl'):
        merge_test_args(make_config('mmdet'), test_args(out='maps'))


def test_show_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = str(tmp_path / 'shown')
    hooks = dict(default_hooks=dict(visualization=dict(type='Hook', interval=7)), visualizer=dict(type='V'))
    det = merge_test_args(make_config('mmdet', **hooks), test_args(show_dir='shown'))
    assert det.default_hooks.visualization == dict(type='Hook', interval=7, draw=True, test_out_dir=directory)
    cls = merge_test_args(make_config('mmpretrain', **hooks), test_args(show_dir='shown'))
    assert cls.default_hooks.visualization == dict(type='Hook', interval=7, enable=True, out_dir=directory)
    seg = merge_test_args(make_config('mmseg', **hooks), test_args(show_dir='shown'))
    assert seg.default_hooks.visualization == dict(type='Hook', interval=7, draw=True)
    assert seg.visualizer.save_dir == directory


@pytest.mark.parametrize(
    ('scope', 'hook', 'visualizer'),
    [
        ('mmdet', 'DetVisualizationHook', 'DetLocalVisualizer'),
        ('mmseg', 'SegVisualizationHook', 'SegLocalVisualizer'),
        ('mmpretrain', 'VisualizationHook', 'UniversalVisualizer'),
    ],
)
def test_show_without_a_hook_in_the_config(scope, hook, visualizer, monkeypatch):
    monkeypatch.setenv('DISPLAY', ':0')
    cfg = merge_test_args(make_config(scope), test_args(show=True, wait_time=5.0))
    shown = cfg.default_hooks.visualization
    assert (shown.type, shown.show, shown.wait_time) == (hook, True, 5.0)
    assert cfg.visualizer.type == visualizer


def test_show_with_the_hook_switched_off(monkeypatch):
    monkeypatch.setenv('DISPLAY', ':0')
    cfg = merge_test_args(make_config(default_hooks=dict(visualization=None)), test_args(show=True))
    assert cfg.default_hooks.visualization == dict(type='DetVisualizationHook', draw=True, show=True, wait_time=2.0)


@pytest.mark.skipif(sys.platform != 'linux', reason='other systems always have one')
def test_show_needs_a_screen(monkeypatch):
    """The toolboxes would wait at each image, with no window."""
    for name in ('DISPLAY', 'WAYLAND_DISPLAY'):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match='--show needs a screen, .* leave it out to write images to --show-dir'):
        merge_test_args(make_config('mmdet'), test_args(show=True))


def test_home_folders(monkeypatch, tmp_path):
    """Which a shell leaves as they are behind ``=``."""
    monkeypatch.setenv('HOME', str(tmp_path))
    cfg = merge_test_args(make_config('mmdet', work_dir='~/run'), test_args(show_dir='~/shown'))
    assert cfg.work_dir == str(tmp_path / 'run')
    assert cfg.default_hooks.visualization.test_out_dir == str(tmp_path / 'shown')


def test_show_needs_a_toolbox():
    with pytest.raises(UserError, match='mmengine'):
        merge_test_args(make_config('mmengine'), test_args(show=True))


def test_tta():
    cfg = make_config(tta_model=dict(type='TTA', tta_cfg=dict(a=1)), tta_pipeline=[dict(type='P')])
    cfg.test_dataloader.dataset = dict(type='RepeatDataset', dataset=cfg.test_dataloader.dataset)
    merged = merge_test_args(cfg, test_args(tta=True))
    assert merged.model.type == 'TTA'
    assert merged.model.module == cfg.model
    assert merged.test_dataloader.dataset.dataset.pipeline == [dict(type='P')]
    inner = cfg.test_dataloader.dataset.dataset
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[inner, copy.deepcopy(inner)])
    merged = merge_test_args(cfg, test_args(tta=True))
    assert [one.pipeline for one in merged.test_dataloader.dataset.datasets] == [[dict(type='P')]] * 2
    assert 'pipeline' not in merged.test_dataloader.dataset
    with pytest.raises(UserError, match='no tta_model'):
        merge_test_args(make_config(), test_args(tta=True))


def test_entries_of_tuples():
    """mmengine merges nothing into them."""
    cfg = make_config()
    cfg.optim_wrapper.optimizer = dict(type='AdamW', betas=(0.9, 0.999))
    with pytest.raises(UserError, match=r'betas is \(0.9, 0.999\), a tuple; set optim_wrapper.optimizer.betas itself'):
        merge_options(cfg, {'optim_wrapper.optimizer.betas.0': 0.8})
    assert merge_options(cfg, {'optim_wrapper.optimizer.betas': (0.8, 0.9)}).optim_wrapper.optimizer.betas == (0.8, 0.9)


@pytest.mark.parametrize(
    'key',
    [
        'model.backbone.arch',
        'model.backbone.with_cp',  # an argument the config does not spell out
        'optim_wrapper.clip_grad.max_norm',
        'optim_wrapper.dtype',  # near to type
        'param_scheduler.1.end',
        'randomness.seed',  # read by mmengine, seldom in a config
        'find_unused_parameters',
    ],
)
def test_good_options(key):
    merged = merge_options(make_config(), {key: 3})
    for part in key.split('.'):
        merged = merged[int(part) if part.isdigit() else part]
    assert merged == 3


@pytest.mark.parametrize(
    ('key', 'message'),
    [
        ('modle.backbone.arch', "the config has no 'modle'; did you mean model?"),
        ('nonsense', "the config has no 'nonsense'"),
        ('train_cfg.max_epoch', "train_cfg has no 'max_epoch'; did you mean max_epochs?"),
        ('model.backbon.arch', 'did you mean backbone?'),
        ('model.backbone.arch.depth', "model.backbone.arch is 'small' and has no entries"),
        ('param_scheduler.2.end', 'param_scheduler is a list of 2'),
        ('param_scheduler.last.end', 'param_scheduler is a list of 2'),
    ],
)
def test_bad_options(key, message):
    with pytest.raises(UserError, match=r'^--cfg-options ' + key.replace('.', r'\.')) as caught:
        merge_options(make_config(), {key: 3})
    assert message in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('key', 'places'),
    [
        ('steps.0.type', 'train_dataloader.dataset.pipeline.0.type and test_dataloader.dataset.pipeline.0.type'),
        ('steps', 'train_dataloader.dataset.pipeline and test_dataloader.dataset.pipeline'),
        ('lavit.arch', 'model.backbone.arch'),
        ('lavit.with_cp', 'model.backbone.with_cp'),
        ('max_epochs', 'train_cfg.max_epochs'),
        (
            'dataset_type',
            'train_dataloader.dataset.type and val_dataloader.dataset.type and test_dataloader.dataset.type',
        ),
    ],
)
def test_options_without_effect(key, places):
    """They change what the file has copied to the places that count."""
    steps = [dict(type='LoadImageFromFile'), dict(type='Pack')]
    cfg = make_config(steps=steps, lavit=dict(arch='small'), dataset_type='A')
    cfg.max_epochs = cfg.train_cfg.max_epochs
    with pytest.raises(UserError, match=f'--cfg-options {key} has no effect: .*; set {places}$'):
        merge_options(cfg, {key: 'x'})


def test_options_of_ones_own():
    """A hook may read them."""
    cfg = make_config(mine=dict(a=1), number=2, mode='small', empty=[])
    merged = merge_options(cfg, {'mine.a': 3, 'number': 4, 'mode': 'max', 'empty': [1]})
    assert (merged.mine.a, merged.mode) == (3, 'max')
    both = {'lavit.arch': 'tiny', 'model.backbone.arch': 'tiny'}  # where somebody sets all of it
    assert merge_options(make_config(lavit=dict(arch='small')), both).lavit.arch == 'tiny'


def test_the_floor_of_a_cosine():
    """By its value, or by its share of the rate."""
    cfg = make_config()
    cfg.param_scheduler[1] = dict(type='CosineAnnealingLR', eta_min_ratio=0.01)
    merged = merge_options(cfg, {'param_scheduler.1.eta_min': 1e-6})
    assert merged.param_scheduler[1] == dict(type='CosineAnnealingLR', eta_min=1e-6)


def test_a_toolbox_that_is_not_found_by_its_name(tmp_path, monkeypatch):
    """mmengine's advice would replace the maintained build."""
    (tmp_path / 'config.py').write_text(
        "raise ModuleNotFoundError('mmsegmentation is not installed, please install mmsegmentation manually')"
    )
    with pytest.raises(UserError, match='inherits from mmsegmentation, .* Do not install it if you have its maint'):
        load_config(str(tmp_path / 'config.py'))


def test_a_config_that_is_no_python(tmp_path):
    (tmp_path / 'wrong.py').write_text("model = dict(\ntype='A'\n")
    with pytest.raises(UserError, match=r'wrong.py is no Python: .*never closed \(.*, line 1\)'):
        load_config(str(tmp_path / 'wrong.py'))


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ("_base_ = ['./a.py', './b.py']", r'Duplicate key'),
        ("_base_ = './a.py'\nx = {{ _base_.y }}", r'child.py cannot be read: '),
        ("custom_imports = dict(imports=['no_such_package'])", r'no_such_package'),
        ('\nx = unknown_name', r"NameError: name 'unknown_name' is not defined \(.*child.py, line 2\)"),
        ('import json\nx = json.loads("{")', r'JSONDecodeError: .* \(.*child.py, line 2\)'),
        ('x = 1 / 0', 'ZeroDivisionError: division by zero'),
        ("_base_ = './child.py'", 'RecursionError'),
        ("_base_ = 'mmfoo::x.py'", 'please specify the package name'),
        ("x = '\udcff'", r'child.py cannot be read'),
    ],
)
def test_mistakes_in_a_config(tmp_path, text, message):
    for name in 'ab':
        (tmp_path / f'{name}.py').write_text('x = dict(y=1)\n')
    (tmp_path / 'child.py').write_bytes(text.encode(errors='surrogateescape'))
    with pytest.raises(UserError, match=message) as caught:
        load_config(str(tmp_path / 'child.py'))
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 700


def test_load_config(tmp_path):
    with pytest.raises(UserError, match='nope.py does not exist'):
        load_config('nope.py')
    (tmp_path / 'child.py').write_text("_base_ = './no_base.py'\n")
    with pytest.raises(UserError, match='no_base.py'):
        load_config(str(tmp_path / 'child.py'))
    (tmp_path / 'good.py').write_text('a = dict(b=1)\n')
    assert load_config(str(tmp_path / 'good.py'), {'a.b': 2}).a.b == 2


def test_parser(capsys):
    parser = argparse.ArgumentParser()
    add_common_arguments(parser)
    args = parser.parse_args(['--cfg-options', 'a.b=1', 'c=[x,2.5]', '--local-rank', '1', '--launcher', 'slurm'])
    assert args.cfg_options == {'a.b': 1, 'c': ['x', 2.5]}
    assert (args.local_rank, args.launcher) == (1, 'slurm')
    for words in (['a.b'], ['a=[1,(2]']):
        with pytest.raises(SystemExit) as stopped:
            parser.parse_args(['--cfg-options', *words])
        assert stopped.value.code == 2
        assert 'expected KEY=VALUE' in capsys.readouterr().err
