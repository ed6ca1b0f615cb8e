"""Weights that do not fit a model are told; where they have to fit, they are refused."""

import logging

import pytest
import torch
from mmengine.model import BaseModule
from torch import nn

from mmlavit import LaViT
from mmlavit.errors import UserError
from mmlavit.models.plain_vit import WithLessAttention
from mmlavit.utils.toolbox import load_toolbox
from mmlavit.utils.weights import Fit, cut_prefix, load_weights, load_what_fits, require_whole


class Net(BaseModule):
    def __init__(self, width=4, init_cfg=None):
        super().__init__(init_cfg)
        self.stem = nn.Conv2d(3, width, 1)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 2)


@pytest.fixture
def told(monkeypatch):
    """What is logged, with its level."""
    lines = []
    monkeypatch.setattr('mmlavit.utils.weights.print_log', lambda text, logger, level: lines.append((text, level)))
    return lines


def test_all_fits(told):
    one, other = Net(), Net()
    state = {f'module.{key}': value for key, value in other.state_dict().items() if 'num_batches' not in key}
    assert load_weights(one, state) == Fit(8, [], [], [])
    assert all(torch.equal(one.state_dict()[key], value) for key, value in other.state_dict().items())
    require_whole(one, state, 'x.pth')
    assert told == []


def test_what_does_not_fit(told):
    state = Net(width=6).state_dict()
    del state['head.bias']
    state['other.weight'] = torch.ones(1)
    fit = load_weights(Net(), state)
    assert fit.missing == ['head.bias'] and fit.unknown == ['other.weight'] and fit.loaded == 0
    assert fit.misshapen[0] == 'stem.weight: 6, 3, 1, 1 instead of 4, 3, 1, 1' and len(fit.misshapen) == 7
    with pytest.raises(UserError) as refused:
        require_whole(Net(), state, 'x.pth')
    line = str(refused.value)
    assert line.startswith(
        'x.pth is not a checkpoint of this config: of 8 tensors of the model 0 fit; 1 missing in the '
    )
    assert '(head.bias); 7 of another shape there (stem.weight: 6, 3, 1, 1 instead of 4, 3, 1, 1,' in line
    assert '\n' not in line
    with pytest.raises(UserError, match='nothing in x.pth fits Net: 1 missing'):
        load_what_fits(Net(), state, 'x.pth')


def test_weights_of_another_model(told):
    """Of which next to nothing fits."""
    nano = LaViT('nano').state_dict()
    with pytest.raises(UserError, match=r'x.pth is of another model: of \d+ tensors of LaViT 4 fit; .*; does arch fit'):
        load_what_fits(LaViT('small'), nano, 'x.pth')
    load_what_fits(LaViT('nano', num_va_layers=(2, 2, 3, 2)), nano, 'x.pth')
    few = {name: nano[name] for name in list(nano)[:3]}  # as of a head alone
    load_what_fits(LaViT('nano'), few, 'x.pth')


def test_another_head(told):
    """As for fine-tuning: loaded is what fits, told is the rest, all of it."""
    state = Net().state_dict() | {'head.weight': torch.ones(5, 4), 'head.bias': torch.ones(5)}
    model = Net()
    load_what_fits(model, state, 'x.pth')
    assert torch.equal(model.stem.weight, state['stem.weight'])
    (line, level), (names, _) = told
    assert (
        line.startswith('Loaded from x.pth: 6 of 8 tensors of Net; not: 2 of another shape')
        and level == logging.WARNING
    )
    assert names == 'Not loaded from x.pth: head.weight: 5, 4 instead of 2, 4, head.bias: 5 instead of 2'


def test_prefix():
    state = {'backbone.a': 1, 'module.backbone.b': 2, 'neck.c': 3}
    assert cut_prefix(state, 'backbone', 'x.pth') == {'a': 1, 'b': 2}
    with pytest.raises(UserError, match="x.pth has no weights whose names begin with 'body.'; they begin with"):
        cut_prefix(state, 'body.', 'x.pth')


def test_init_cfg(tmp_path):
    """What any model starts from, by mmengine's init_cfg."""
    path = str(tmp_path / 'x.pth')
    source = Net()
    state = {f'backbone.{key}': value for key, value in source.state_dict().items()}
    torch.save({**state, 'head.fc.weight': torch.ones(1)}, path)
    model = Net(init_cfg=dict(type='Pretrained', checkpoint=path, prefix='backbone.'))
    model.init_weights()
    assert torch.equal(model.stem.weight, source.stem.weight)
    for prefix, message in (
        ('body.', 'has no weights whose names begin'),
        (None, r"fits Net.*add prefix='backbone.' to init_cfg"),
    ):
        with pytest.raises(UserError, match=message):
            Net(init_cfg=dict(type='Pretrained', checkpoint=path, prefix=prefix)).init_weights()
    with pytest.raises(UserError, match='fits LaViT'):
        LaViT('nano', init_cfg=dict(type='Pretrained', checkpoint=path, prefix='backbone.')).init_weights()


def test_keys_that_a_module_renames(told):
    """Queries, keys and values of a plain transformer become values, and its names get another prefix."""
    load_toolbox('mmpretrain')
    from mmengine.registry import MODELS
    from small_vit import VIT

    plain = MODELS.build(VIT)
    fit = load_weights(WithLessAttention(VIT, [2, 3]), plain.state_dict())
    assert sorted(fit.missing) == [
        f'backbone.layers.{i}.attn.delta_{name}' for i in (2, 3) for name in ('psi', 'theta')
    ]
    assert fit.misshapen == []
