"""What is said about decayed and fast transforms."""

from types import SimpleNamespace

import pytest
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmlavit import LaViT
from mmlavit.engine.hooks.rates_hook import RatesHook

NO_DECAY = {key: dict(decay_mult=0.0) for key in ('.delta_psi', '.delta_theta')}
SLOW = {key: dict(decay_mult=0.0, lr_mult=0.1) for key in ('.delta_psi', '.delta_theta')}


@pytest.mark.parametrize(
    ('keys', 'expected'),
    [
        (NO_DECAY, []),
        ({}, ['Weight decay pulls the transforms']),
        ({'backbone': dict(lr_mult=0.1), **NO_DECAY}, ['learn at a rate of 0.001, their layers at 0.0001: repeat']),
        ({'backbone': dict(lr_mult=0.1), **SLOW}, []),
        (SLOW, []),
    ],
)
@pytest.mark.parametrize('frozen', [False, True])
def test_transforms(keys, expected, frozen):
    model = nn.Module()
    model.backbone = LaViT('nano', frozen_stages=4 if frozen else -1)
    model.backbone.train()
    model.head = nn.Linear(2, 2)
    optimizer = dict(type='AdamW', lr=1e-3, weight_decay=0.05)
    wrapper = build_optim_wrapper(model, dict(optimizer=optimizer, paramwise_cfg=dict(custom_keys=keys)))
    said = []
    RatesHook().before_train(
        SimpleNamespace(model=model, optim_wrapper=wrapper, logger=SimpleNamespace(warning=said.append))
    )
    expected = [] if frozen else expected
    assert len(said) == len(expected) and all(part in line for part, line in zip(expected, said))


def test_adapters():
    model = LaViT('nano')
    for module in model.modules():
        if hasattr(module, 'delta_psi'):
            module.v = nn.Sequential(module.v)
    wrapper = build_optim_wrapper(model, dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05)))
    RatesHook().before_train(SimpleNamespace(model=model, optim_wrapper=wrapper, logger=None))


def test_without_an_optimizer_or_less_attention():
    for model in (nn.Linear(2, 2), LaViT('nano')):
        RatesHook().before_train(SimpleNamespace(model=model, optim_wrapper=object(), logger=None))
