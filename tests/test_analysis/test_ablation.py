"""What is taken away is gone: a trained model without it, and networks that are trained without it."""

import copy

import pytest
import torch
from mmengine.registry import MODELS

from mmlavit import LaViT
from mmlavit.analysis.ablation import ablate
from mmlavit.analysis.controls import CONTROLS, LaViTControl
from mmlavit.errors import ConfigError
from mmlavit.models import LessAttention

LAYERS = (1, 1, 1, 1)  # vanilla ones of LaViT-nano


def build(**kwargs):
    torch.manual_seed(0)
    model = LaViT('nano', drop_path_rate=0.0, **kwargs).eval()
    for name, parameter in model.named_parameters():
        if '.delta_' in name or parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(params=[False, True], ids=['lavit', 'twin'])
def model(request):
    return build(num_va_layers=(2, 2, 3, 2), attention_residual=False) if request.param else build()


def outputs(model):
    torch.manual_seed(1)
    with torch.no_grad():
        return torch.cat([out.flatten() for out in model(torch.rand(1, 3, 97, 161))])


def later_blocks(model):
    return [block for stage, count in zip(model.stages, LAYERS, strict=True) for block in stage.blocks[count:]]


def test_without_residuals():
    wanted = build(attention_residual=False)
    model = build()
    wanted.load_state_dict({k: v for k, v in model.state_dict().items() if '.residual.' not in k})
    ablate(model, 'residual', LAYERS)
    torch.testing.assert_close(outputs(model), outputs(wanted))


def test_without_transforms():
    """As the control that never had any."""
    model = build()
    wanted = LaViTControl('nano', drop_path_rate=0.0, later='shared').eval()
    wanted.load_state_dict({k: v for k, v in model.state_dict().items() if '.delta_' not in k})
    before = outputs(model)
    ablate(model, 'transforms', LAYERS)
    torch.testing.assert_close(outputs(model), outputs(wanted))
    assert not torch.allclose(before, outputs(wanted), rtol=1e-3)


def test_without_attention(model):
    """As projections that give zero."""
    wanted = copy.deepcopy(model)
    for block in later_blocks(wanted):
        torch.nn.init.zeros_(block.attn.proj.weight)
        torch.nn.init.zeros_(block.attn.proj.bias)
    ablate(model, 'none', LAYERS)
    torch.testing.assert_close(outputs(model), outputs(wanted))


def test_uniform_attention_of_vanilla_layers():
    """As queries and their bias at zero."""
    model = build(num_va_layers=(2, 2, 3, 2), attention_residual=False)
    wanted = copy.deepcopy(model)
    for block in later_blocks(wanted):
        torch.nn.init.zeros_(block.attn.q.weight)
        torch.nn.init.zeros_(block.attn.q.bias)
    before = outputs(model)
    ablate(model, 'uniform', LAYERS)
    torch.testing.assert_close(outputs(model), outputs(wanted), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, outputs(wanted), rtol=1e-3)


@pytest.mark.parametrize('later', ['uniform', 'none'])
def test_trained_controls_are_ablated_models(later):
    # Without residuals, since an ablated layer still transforms the scores that the next stage gets.
    model = build(attention_residual=False)
    control = LaViTControl('nano', attention_residual=False, drop_path_rate=0.0, later=later).eval()
    names = control.state_dict().keys()
    control.load_state_dict({k: v for k, v in model.state_dict().items() if k in names})
    ablate(model, later, LAYERS)
    torch.testing.assert_close(outputs(model), outputs(control))


def test_what_is_not_there():
    twin = build(num_va_layers=(2, 2, 3, 2), attention_residual=False)
    for what, title in (('residual', 'attention residuals'), ('transforms', 'transforms of scores')):
        with pytest.raises(ConfigError, match=f'this backbone has no {title}'):
            ablate(twin, what, LAYERS)
    with pytest.raises(ConfigError, match='expected a LaViT as backbone, got Linear'):
        ablate(torch.nn.Linear(1, 1), 'none', LAYERS)


@pytest.mark.parametrize('later', CONTROLS)
def test_controls_train(later):
    model = MODELS.build(dict(type='LaViTControl', arch='nano', later=later))
    sum(out.square().mean() for out in model(torch.rand(1, 3, 97, 161))).backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not unused
    assert sum(isinstance(module, LessAttention) for module in model.modules()) == 5


def test_unknown_control():
    with pytest.raises(ConfigError, match="later must be one of shared, uniform, none, got 'half'"):
        LaViTControl('nano', later='half')
