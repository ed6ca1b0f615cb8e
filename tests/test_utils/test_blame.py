"""Mistakes in a config that show when its parts are built: one line that says where and what to do."""

import copy

import pytest
import torch
from documents import ROOT
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, MODELS, DefaultScope
from tool_runs import run_tool

from mmlavit import LaViT
from mmlavit.errors import UserError
from mmlavit.utils.blame import blame_config
from mmlavit.utils.config_files import load_config
from mmlavit.utils.toolbox import load_toolbox


def build(cfg, registry=MODELS, options=None):
    load_toolbox('mmdet')
    with DefaultScope.overwrite_default_scope('mmdet'), blame_config(dict(part=cfg), options):
        registry.build(cfg)


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        (
            dict(type='LaViT', num_va_layer=1),
            r"^part: LaViT takes no argument 'num_va_layer'; did you mean num_va_layers\?",
        ),
        (
            dict(type='LaViT', depth=50),
            "takes no argument 'depth'; .* left over .* add _delete_=True beside the new type",
        ),
        (dict(type='LAViT'), r'^part: no LAViT is registered in \S+; did you mean LaViT\?'),
        (
            dict(type='Qqqqq'),
            'no Qqqqq is registered in .*; check its spelling. A class of your own has to be imported',
        ),
    ],
)
def test_mistakes(cfg, message):
    with pytest.raises(UserError, match=message):
        build(cfg)


@pytest.mark.parametrize(
    ('name', 'decay'),
    [
        ('mmdet.LearningRateDecayOptimizerConstructor', dict(decay_rate=0.9, decay_type='layer_wise', num_layers=9)),
        ('mmseg.LearningRateDecayOptimizerConstructor', dict(decay_rate=0.9, decay_type='layer_wise', num_layers=9)),
        ('mmpretrain.LearningRateDecayOptimWrapperConstructor', dict(layer_decay_rate=0.9)),  # it asks a classifier
    ],
)
def test_layer_decay_of_a_backbone_that_is_not_known(name, decay):
    load_toolbox(name.partition('.')[0])
    cfg = dict(optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.1), constructor=name, paramwise_cfg=decay)
    model = torch.nn.Module()
    model.backbone = LaViT('nano')
    with pytest.raises(UserError, match=f'^optim_wrapper.constructor: {name} does not know the layers'):
        with blame_config(dict(optim_wrapper=cfg)):
            build_optim_wrapper(model, cfg)


def test_pretrained_of_a_base_config():
    load_toolbox('mmseg')
    backbone = dict(type='LaViT', arch='nano')
    head = dict(type='FCNHead', in_channels=192, channels=8, in_index=3, num_classes=2)
    model = dict(type='EncoderDecoder', pretrained='open-mmlab://r50', backbone=backbone, decode_head=head)
    model = ConfigDict(model)
    with pytest.raises(UserError, match="^model.pretrained is 'open-mm.*left over .* set model.pretrained=None"):
        with DefaultScope.overwrite_default_scope('mmseg'), blame_config(dict(model=copy.deepcopy(model))):
            MODELS.build(model)


@pytest.mark.parametrize(('kind', 'message'), [('AdamWW', r'did you mean AdamW\?'), ('Qqqqq', 'check its spelling')])
def test_unknown_optimizer(kind, message):
    cfg = dict(
        type='OptimWrapper',
        optimizer=dict(type=kind, lr=0.1, weight_decay=0.1),
        paramwise_cfg=dict(norm_decay_mult=0.0),
    )
    with pytest.raises(UserError, match=rf'^optim_wrapper.optimizer: no {kind} is registered in .*; {message}'):
        with blame_config(dict(optim_wrapper=cfg)):
            build_optim_wrapper(torch.nn.Linear(1, 1), cfg)


@pytest.mark.parametrize(
    ('cfg', 'error', 'message'),
    [
        (
            dict(train_cfg=dict(by_epoch=False, max_epochs=3, max_iters=9)),
            TypeError("IterBasedTrainLoop.__init__() got an unexpected keyword argument 'max_epochs'"),
            '^train_cfg has max_epochs, but with by_epoch=False the length is max_iters',
        ),
        (
            dict(train_dataloader=dict(sampler=dict(type='DefaltSampler'))),
            KeyError('DefaltSampler is not in the mmengine::data sampler registry. Please check'),
            r'train_dataloader.sampler: no DefaltSampler is registered in .*; did you mean DefaultSampler\?',
        ),
        (
            dict(default_hooks=dict(checkpoint=dict(save_best=['accuracy/top1', 'accuracy/top2']))),
            KeyError('accuracy/top2'),
            "^default_hooks.checkpoint.save_best: the validation gave no 'accuracy/top2'",
        ),
        (
            dict(param_scheduler=[dict(type='LinearLR', begin=5, end=3)]),
            ValueError('end should be larger than begin, but got begin=5, end=3'),
            '^param_scheduler.0: LinearLR begins at 5 and ends at 3',
        ),
    ],
)
def test_mistakes_that_show_later(cfg, error, message):
    """What mmengine says of them, and what of it is about the config."""
    with pytest.raises(UserError, match=message), blame_config(cfg):
        raise error
    for other in (dict(), dict(part=dict(type='LaViT'))):
        with pytest.raises(type(error)) as untouched, blame_config(other):
            raise error
        assert untouched.value is error


def test_a_class_of_another_toolbox():
    with pytest.raises(
        UserError, match=r'no EncoderDecoder is registered in \S+; did you mean mmseg.EncoderDecoder\?$'
    ):
        build(dict(type='EncoderDecoder'))


def test_hooks():
    with pytest.raises(UserError, match=r'part: no EMAHok is registered in \S+; did you mean EMAHook\?'):
        build(dict(type='EMAHok'), HOOKS)


def test_options_come_first():
    cfg = dict(type='LaViT', archh='nano')
    with pytest.raises(UserError, match="^--cfg-options model.backbone.archh: LaViT takes no argument 'archh'; check"):
        build(cfg, options={'model.backbone.archh': 'nano'})


def test_mistakes_of_code_keep_their_trace():
    """What the config does not have is no mistake in it."""
    for error in (
        TypeError("LaViT.__init__() got an unexpected keyword argument 'depth'"),
        TypeError('unsupported'),
        KeyError('LAViT is not in the mmdet::model registry'),
        KeyError(),
    ):
        with pytest.raises(type(error)), blame_config(dict(model=dict(type='LaViT', arch='nano')), {'a': 1}):
            raise error


def test_in_a_training(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    cfg = load_config(str(ROOT / 'configs/handwritten/classify_lavit_nano.py'))
    cfg.model.backbone.num_va_layer = 1
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.data_root = 'data'
        (tmp_path / 'data' / loader.dataset.data_prefix / '0').mkdir(parents=True, exist_ok=True)
    cfg.dump('config.py')
    code = run_tool(monkeypatch, 'train.py', 'config.py', '--work-dir', tmp_path / 'run')
    error = capfd.readouterr().err.splitlines()[-1]
    assert code == 2 and error.startswith("error: model.backbone: LaViT takes no argument 'num_va_layer'; did you mean")
