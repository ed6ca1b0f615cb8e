"""What a training starts from: nothing, weights, or a checkpoint."""

import re

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import FlexibleRunner
from toy_training import Recorder, ToyModel, train

from mmlavit import LaViT
from mmlavit.engine.hooks.stop_hook import _has_stepped
from mmlavit.engine.runner import _name_runner, _require_own_checkpointing, build_runner
from mmlavit.errors import ConfigError, UserError


@pytest.fixture
def weights(tmp_path):
    """A state dict alone, as timm and torchvision publish them."""
    state = {name: torch.full_like(value, 7) for name, value in ToyModel().state_dict().items()}
    torch.save(state, tmp_path / 'weights.pth')
    return tmp_path / 'weights.pth'


def first_weights(folder):
    return torch.load(folder / 'iter_3.pth', weights_only=True)['state_dict']['layer.weight']


@pytest.mark.parametrize('resume', ['auto', None])
def test_the_first_start_of_a_training_to_be_resumed(resume, weights, tmp_path, capfd):
    """With EMA, whose hook expects a checkpoint's form."""
    folder = tmp_path / 'run'
    options = dict(load_from=str(weights), optim_wrapper__optimizer__lr=0.0, train_cfg__max_epochs=1)
    train(folder, resume, log_level='INFO', **options)
    assert (first_weights(folder) == 7).all()
    said = f'There is no checkpoint in {folder} to resume from: the training begins from load_from={weights}.'
    assert (said in capfd.readouterr().out) == (resume == 'auto')


def test_the_second_start(weights, tmp_path):
    """From the checkpoint, not from load_from."""
    train(tmp_path / 'run', train_cfg__max_epochs=1)
    train(tmp_path / 'run', 'auto', load_from=str(weights))
    assert Recorder.last.places[0] == (1, 0, 6)


def test_average_of_an_earlier_training(tmp_path):
    """A training from its checkpoint starts from the average and begins its own, which mmpretrain's hook does not."""
    ema = dict(type='mmpretrain.EMAHook', ema_type='MomentumAnnealingEMA', gamma=10, momentum=4e-5)
    options = dict(custom_hooks=[dict(type='Recorder'), ema], train_cfg__max_epochs=1)
    train(tmp_path / 'first', **options)
    before = torch.load(tmp_path / 'first/iter_3.pth', weights_only=True)
    assert not torch.equal(before['state_dict']['layer.weight'], before['ema_state_dict']['module.layer.weight'])
    options |= dict(load_from=str(tmp_path / 'first/iter_3.pth'), optim_wrapper__optimizer__lr=0.0)
    train(tmp_path / 'second', **options)
    after = torch.load(tmp_path / 'second/iter_3.pth', weights_only=True)
    assert before['ema_state_dict']['steps'] == after['ema_state_dict']['steps']  # as many iterations
    assert torch.equal(first_weights(tmp_path / 'second'), before['state_dict']['layer.weight'])


@pytest.mark.parametrize('kind', ['published', 'state dict'])
def test_weights_are_not_resumed_from(kind, weights, tmp_path):
    if kind == 'published':
        torch.save(dict(meta={}, state_dict=torch.load(weights)), weights)
    with pytest.raises(UserError, match=r'weights.pth has weights only, so no training can be resumed from it'):
        train(tmp_path / 'run', weights)


def test_the_best_checkpoint_is_not_resumed_from(tmp_path):
    """mmengine saves it without the states of optimizer and schedule, and would begin these anew."""
    schedule = dict(type='MultiStepLR', milestones=[1], by_epoch=True)
    options = dict(param_scheduler=[schedule], train_cfg__max_epochs=1)
    train(tmp_path / 'run', **options)
    checkpoint = torch.load(tmp_path / 'run/iter_3.pth', weights_only=True)
    torch.save(
        {key: checkpoint[key] for key in ('meta', 'message_hub', 'state_dict')}, tmp_path / 'best_mIoU_epoch_1.pth'
    )
    with pytest.raises(
        UserError, match='best_mIoU_epoch_1.pth lacks the state of the optimizer and the schedule, like all best'
    ):
        train(tmp_path / 'run', tmp_path / 'best_mIoU_epoch_1.pth', **options)


def test_settings_that_a_resumed_training_keeps(tmp_path):
    schedule = dict(type='CosineAnnealingLR', by_epoch=False, end=3)
    train(tmp_path, param_scheduler=[schedule], train_cfg__max_epochs=1)
    train(tmp_path, 'auto', param_scheduler=[schedule], log_level='INFO')
    assert 'A resumed training keeps the settings' not in _newest_log(tmp_path)
    options = dict(optim_wrapper__optimizer__lr=0.02, param_scheduler=[dict(schedule, end=30)], log_level='INFO')
    train(tmp_path, 'auto', train_cfg__max_epochs=9, **options)
    said = _newest_log(tmp_path)
    assert re.search(r': lr of the optimizer \(config 0.02, checkpoint 0.01\), param_scheduler.0.T_max', said)
    assert 'param_scheduler.0.end (config 30, checkpoint 3)' in said


def test_milestones_that_a_resumed_training_keeps(tmp_path):
    schedule = dict(type='MultiStepLR', milestones=[1, 2], by_epoch=True)
    train(tmp_path, param_scheduler=[schedule], train_cfg__max_epochs=1)
    changed = dict(schedule, milestones=[5], gamma=0.5)
    more = dict(train_cfg__max_epochs=2, log_level='INFO')
    with pytest.raises(UserError, match='has the states of 1 schedules, and the config has 2'):
        train(tmp_path, 'auto', param_scheduler=[changed, dict(type='ConstantLR', factor=0.5)], **more)
    train(tmp_path, 'auto', param_scheduler=[changed], **more)
    said = _newest_log(tmp_path)
    assert 'param_scheduler.0.gamma (config 0.5, checkpoint 0.1)' in said
    assert 'param_scheduler.0.milestones (config [5], checkpoint [1, 2])' in said


def test_averaged_weights_are_not_resumed_without_their_hook(tmp_path):
    recorder = dict(type='Recorder')
    train(tmp_path, custom_hooks=[recorder, dict(type='EMAHook')], train_cfg__max_epochs=1)
    with pytest.raises(UserError, match='is of a training with EMAHook, and the config has none'):
        train(tmp_path, 'auto', custom_hooks=[recorder])
    train(tmp_path, 'auto', custom_hooks=[recorder, dict(type='EMAHook')])


def _newest_log(folder):
    return max(folder.glob('2*/2*.log')).read_text()


@pytest.mark.parametrize('kind', [FlexibleRunner, 'mmengine.FlexibleRunner', 'FlexibleRunner'], ids=str)
def test_names_of_runners(kind):
    cfg = Config(dict(runner_type=kind))
    _name_runner(cfg)
    assert cfg.runner_type == 'FlexibleRunner'


@pytest.mark.parametrize('by_epoch', [True, False])
def test_data_without_a_batch(by_epoch, tmp_path):
    cfg = dict(by_epoch=True, max_epochs=2) if by_epoch else dict(by_epoch=False, max_iters=5)
    with pytest.raises(ConfigError, match='the training data give no batch: there are fewer images'):
        train(tmp_path, train_cfg=cfg, train_dataloader__batch_size=20, train_dataloader__drop_last=True)


def test_an_epoch_without_an_end(tmp_path):
    with pytest.raises(ConfigError, match='an epoch of InfiniteSampler has no end; set train_dataloader.sampler.type='):
        train(tmp_path, train_dataloader__sampler__type='InfiniteSampler')


def test_checkpoints_of_hooks_without_numbers(tmp_path):
    """Of a runner with strategies, as DistillationHook saves the start."""
    cfg = Config(
        dict(
            model=dict(type='ToyModel'),
            runner_type='FlexibleRunner',
            train_dataloader=dict(
                batch_size=2,
                dataset=dict(type='ToyData'),
                sampler=dict(type='DefaultSampler'),
                collate_fn=dict(type='default_collate'),
            ),
            train_cfg=dict(by_epoch=False, max_iters=1),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            custom_hooks=[dict(type='SaveStart')],
            env_cfg=dict(),
            work_dir=str(tmp_path),
            experiment_name=f'start{tmp_path}',
        )
    )
    build_runner(cfg, 'train').train()
    saved = torch.load(tmp_path / 'start.pth', weights_only=True)
    assert saved['state_dict'].keys() == ToyModel().state_dict().keys()


def test_several_optimizers():
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    first, second = (OptimWrapper(torch.optim.SGD([w], lr=0.1), accumulative_counts=2) for w in weights)
    both = OptimWrapperDict(first=first, second=second)
    found = []
    for wrapper, weight in [(first, weights[0]), (first, weights[0]), (second, weights[1])]:
        wrapper.update_params(weight.sum())
        found.append(_has_stepped(both))
    assert found == [False, True, False]


@pytest.mark.parametrize('name', ['backbone.stages.2.blocks.0', 'backbone.stages.0', 'backbone', 'neck'])
def test_checkpointing_that_loses_gradients(name):
    """mmengine's drops what goes through the scores, which are no tensors of their own."""
    model = torch.nn.ModuleDict(dict(backbone=LaViT('nano'), neck=torch.nn.Linear(1, 1)))
    cfg = Config(dict(activation_checkpointing=[name]))
    if name == 'neck':
        _require_own_checkpointing(cfg, model)
        return
    with pytest.raises(
        ConfigError, match=r'loses gradients of the scores .* set model\.backbone\.with_cp=True instead'
    ):
        _require_own_checkpointing(cfg, model)


def test_losses_that_are_not_watched(tmp_path, capfd):
    hint = 'The config has no CheckNumbersHook: a loss that is NaN does not end the training'
    train(tmp_path / 'a', log_level='INFO', train_cfg__max_epochs=1)
    assert hint in capfd.readouterr().out
    train(tmp_path / 'b', log_level='INFO', train_cfg__max_epochs=1, custom_hooks=[dict(type='CheckNumbersHook')])
    assert hint not in capfd.readouterr().out
