"""What is computed again in the backward pass: the same gradients to the last bit, and less memory."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlavit import LaViT
from mmlavit.models import recompute as recompute_module
from mmlavit.models.recompute import recompute


def train(model, x, dtype=torch.float32):
    """Outputs and all gradients of one step."""
    model.zero_grad()
    torch.manual_seed(1)
    with torch.autocast(x.device.type, dtype, enabled=dtype is not torch.float32):
        outs = model(x)
        loss = sum((out * torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out)).sum() for out in outs)
    loss.backward()
    return [*outs, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.fixture
def without(monkeypatch):
    """Switch it off."""

    def switch():
        monkeypatch.setattr(recompute_module._state, 'off', True, raising=False)

    return switch


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('size', [(64, 96), (160, 224)], ids=str)
@pytest.mark.parametrize('with_cp', [False, True])
def test_same_gradients(dtype, size, with_cp, without, device):
    """At the smaller size values are folded in stages 1 and 2 and not in the others."""
    torch.manual_seed(0)
    model = LaViT('nano', with_cp=with_cp, drop_path_rate=0.2).to(device).train()
    x = torch.rand(2, 3, *size, device=device)
    found = train(model, x, dtype)
    without()
    expected = train(model, x, dtype)
    assert len(found) == len(expected) > 100
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_the_network_keeps_less(without):
    model, x = LaViT('nano', drop_path_rate=0.0), torch.rand(2, 3, 160, 224)
    kept = []
    for switch in (lambda: None, without):
        switch()
        sizes: dict[int, int] = {}

        def pack(tensor, sizes=sizes):
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outs = model(x)
        kept.append(sum(sizes.values()))
        del outs
    assert kept[0] < 0.9 * kept[1], kept


@pytest.mark.parametrize('function', [F.gelu, lambda x: x.softmax(-1)], ids=['gelu', 'softmax'])
def test_the_result_is_not_kept(function):
    """A tensor that autograd keeps is alive when nothing else refers to it."""
    layer = nn.Linear(50, 50)
    x = torch.rand(1000, 50, requires_grad=True)
    seen = []

    def use(y):
        seen.append(weakref.ref(y))
        return layer(y)

    found, expected = recompute(function, x, use), use(function(x))
    assert [ref() is None for ref in seen] == [True, False]
    grads = [torch.autograd.grad(out.square().sum(), [x, layer.weight]) for out in (found, expected)]
    torch.testing.assert_close(*grads, rtol=0, atol=0)


def test_wrapped_layers():
    """What uses the result may be anything, here a sum of two linears, as LoRA has."""
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    x = torch.rand(5, 8, requires_grad=True)

    def use(y):
        return first(y) + second(y.flip(0)) + first(y[:, :8])

    grads = []
    for out in (recompute(F.gelu, x, use), use(F.gelu(x))):
        grads.append(torch.autograd.grad(out.square().sum(), [x, first.weight, second.weight]))
    torch.testing.assert_close(*grads, rtol=0, atol=0)


def test_functional_gradient():
    """torch.func allows no hooks on what is saved."""
    torch.manual_seed(0)
    model = LaViT('nano', drop_path_rate=0.0)
    x, parameters = torch.rand(1, 3, 64, 96), dict(model.named_parameters())

    def loss(parameters):
        return torch.func.functional_call(model, parameters, x)[3].square().sum()

    found = torch.func.grad(loss)(parameters)
    loss(parameters).backward()
    name = 'stages.0.blocks.0.mlp.fc2.weight'
    torch.testing.assert_close(found[name], parameters[name].grad)


def test_without_numbers():
    """On the device 'meta', as for estimates of memory."""
    model = LaViT('nano').to('meta')
    sum(out.sum() for out in model(torch.rand(1, 3, 64, 96, device='meta'))).backward()
    assert all(parameter.grad.is_meta for parameter in model.parameters())


class Odd(torch.Tensor):
    """Any class of tensors of its own."""


def test_weights_of_a_class_of_their_own():
    """They are kept as they are."""
    weight = Odd(torch.rand(3, 3)).requires_grad_()
    x = torch.rand(2, 3, requires_grad=True)
    recompute(F.gelu, x, lambda y: torch.nn.functional.linear(y, weight)).sum().backward()
    assert weight.grad is not None


def test_twice_through_the_graph():
    x = torch.rand(5, 8, requires_grad=True)
    layer = nn.Linear(8, 8)
    out = recompute(F.gelu, x, layer).square().sum()
    grads = [torch.autograd.grad(out, layer.weight, retain_graph=True)[0] for _ in range(2)]
    torch.testing.assert_close(*grads, rtol=0, atol=0)


def test_twice_through_a_checkpoint():
    model = LaViT('nano', with_cp=True).train()
    torch.manual_seed(0)
    out = sum(map_.square().mean() for map_ in model(torch.rand(1, 3, 64, 64)))
    first, second = (torch.autograd.grad(out, [*model.parameters()], retain_graph=True) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_changed_in_place():
    x = torch.rand(5, 8, requires_grad=True) * 1
    layer = nn.Linear(8, 8)
    out = recompute(F.gelu, x, layer).sum()
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match='in place'):
        out.backward()


@pytest.mark.parametrize('change', ['dropout', 'hook', 'view'])
def test_a_result_that_is_changed_in_place(change):
    """By what uses it: then it is kept as it was used."""
    x = torch.rand(5, 8, requires_grad=True)
    layer = nn.Linear(8, 8)
    use = layer
    if change == 'dropout':
        use = nn.Sequential(nn.Dropout(0.5, inplace=True), layer)
    elif change == 'hook':
        layer.register_forward_pre_hook(lambda module, args: (args[0].mul_(2),))
    else:
        use = lambda y: layer(y.view(5, 2, 4).mul_(3).view(5, 8))  # noqa: E731
    grads = []
    for run in (lambda: recompute(F.gelu, x, use), lambda: use(F.gelu(x))):
        torch.manual_seed(0)
        grads.append(torch.autograd.grad(run().square().sum(), [x, layer.weight]))
    torch.testing.assert_close(*grads, rtol=0, atol=0)
