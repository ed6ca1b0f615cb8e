"""Any arguments: a backbone builds and runs at any size, or refuses in one line that names the argument.

Few examples, always the same ones, by default. To hunt with new ones:

    MMLAVIT_EXAMPLES=5000 pytest tests/test_models/test_any_arguments.py -n0
"""

import os

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mmengine.model import BaseModule
from mmengine.registry import init_default_scope
from torch import nn

from mmlavit import LaViT
from mmlavit.errors import ConfigError
from mmlavit.models.plain_vit import WithLessAttention

HUNT = int(os.environ.get('MMLAVIT_EXAMPLES', 0))


def examples(number):
    """That many examples, or as many as a hunt asks for."""
    return settings(
        max_examples=HUNT or number,
        derandomize=not HUNT,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


def four(element):
    return st.lists(element, min_size=4, max_size=4) | st.tuples(*[element] * 4)


@st.composite
def archs(draw):
    """A dict that describes a small architecture."""
    heads = draw(four(st.integers(1, 3)))
    depths = draw(four(st.integers(1, 3)))
    arch = dict(
        embed_dims=[n * draw(st.integers(1, 9)) for n in heads],
        num_heads=heads,
        depths=depths,
        num_va_layers=[draw(st.integers(1, depth)) for depth in depths],
        mlp_ratios=draw(four(st.sampled_from([1, 2.5, 4]))),
    )
    optional = dict(
        patch_kernels=st.tuples(st.sampled_from([4, 5, 7]), *[st.sampled_from([2, 3, 5])] * 3),
        key_grid=st.integers(1, 5),
        query_grids=four(st.integers(1, 9)),
        norm_eps=st.tuples(*[st.sampled_from([1e-6, 1e-5])] * 3),
    )
    return arch | draw(st.fixed_dictionaries({}, optional=optional))


@st.composite
def arguments(draw):
    """Arguments of a LaViT, all of them good."""
    arch = draw(st.sampled_from(['nano', 'n', 'NANO']) | archs())
    depths = (2, 2, 3, 2) if isinstance(arch, str) else arch['depths']
    outs = sorted(draw(st.sets(st.integers(0, 3), min_size=1)))
    optional = dict(
        in_channels=st.integers(1, 4),
        num_va_layers=st.none() | st.just(1) | st.tuples(*(st.integers(1, depth) for depth in depths)),
        attention_residual=st.booleans(),
        key_reduction=st.sampled_from(['conv', 'pool']),
        drop_path_rate=st.floats(0, 0.9),
        layer_scale_init=st.floats(-1, 1),
        out_indices=st.just(outs),
        with_cp=st.booleans(),
        init_cfg=st.none(),
    )
    kwargs = draw(st.fixed_dictionaries(dict(arch=st.just(arch)), optional=optional))
    last = kwargs.get('out_indices', range(4))[-1]
    return kwargs | draw(st.fixed_dictionaries({}, optional=dict(frozen_stages=st.integers(-1, last + 1))))


SIDES = st.sampled_from([1, 2, 3, 31, 32, 33, 64, 65]) | st.integers(1, 100)
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 9), st.floats(), st.text(max_size=3), st.just([]), st.just({}),
    st.lists(st.integers(-2, 5) | st.floats() | st.none(), max_size=5), st.just('nano'), st.just(object()),
)  # fmt: skip
ARGUMENTS = [
    'arch', 'in_channels', 'num_va_layers', 'attention_residual', 'key_reduction', 'drop_path_rate',
    'layer_scale_init', 'out_indices', 'frozen_stages', 'with_cp', 'init_cfg',
]  # fmt: skip
KEYS = [
    'embed_dims', 'num_heads', 'depths', 'num_va_layers', 'mlp_ratios', 'patch_kernels', 'key_grid', 'query_grids',
    'norm_eps',
]  # fmt: skip


def run(model: BaseModule, kwargs: dict, size: tuple, batch: int, training: bool) -> None:
    """Run forwards, and backwards in training; sizes and channels are as promised, and all is finite."""
    model.train(training)
    with torch.set_grad_enabled(training):
        maps = model(torch.rand(batch, kwargs.get('in_channels', 3), *size))
    arch = kwargs['arch']
    dims = (32, 64, 128, 192) if isinstance(arch, str) else arch['embed_dims']
    outs = kwargs.get('out_indices', range(4))
    expected = [(batch, dims[i], *(-(-side // (4, 8, 16, 32)[i]) for side in size)) for i in outs]
    assert [tuple(m.shape) for m in maps] == expected
    assert all(m.isfinite().all() for m in maps)
    if training and any(m.requires_grad for m in maps):
        sum(m.square().mean() for m in maps).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@examples(25)
@given(arguments(), st.tuples(SIDES, SIDES), st.integers(1, 2), st.booleans())
def test_good_arguments_run_at_any_size(kwargs, size, batch, training):
    model = LaViT(**kwargs)
    model.init_weights()
    run(model, kwargs, size, batch, training)


@examples(60)
@given(arguments(), st.sampled_from(ARGUMENTS), JUNK, st.tuples(SIDES, SIDES))
@example({'arch': 'nano'}, 'out_indices', [1.0], (32, 32))
@example({'arch': 'nano'}, 'out_indices', 3, (32, 32))
@example({'arch': 'nano'}, 'drop_path_rate', '0.1', (32, 32))
@example({'arch': 'nano'}, 'layer_scale_init', float('nan'), (32, 32))
@example({'arch': 'nano'}, 'num_va_layers', 'nano', (32, 32))
@example({'arch': 'nano'}, 'arch', None, (32, 32))
def test_one_argument_is_junk(kwargs, name, junk, size):
    kwargs = kwargs | {name: junk}
    try:
        model = LaViT(**kwargs)
    except ConfigError as error:
        assert name in str(error) or (name == 'out_indices' and 'frozen_stages' in str(error))
        return
    run(model, kwargs, size, 2, training=False)


@examples(60)
@given(archs(), st.sampled_from(KEYS), JUNK | four(JUNK), st.tuples(SIDES, SIDES))
@example(dict(embed_dims=[8] * 4, num_heads=[1] * 4, depths=[1] * 4, num_va_layers=[1] * 4, mlp_ratios=[1] * 4),
         'mlp_ratios', [0.01] * 4, (32, 32))  # fmt: skip
def test_one_entry_of_the_architecture_is_junk(arch, key, junk, size):
    arch = arch | {key: junk}
    try:
        model = LaViT(arch)
    except ConfigError as error:
        # Some can only be wrong together with another.
        partners = dict(num_heads='embed_dims', depths='num_va_layers', embed_dims='mlp_ratios')
        assert key in str(error) or partners.get(key, key) in str(error)
        assert '\n' not in str(error)
        return
    run(model, dict(arch=arch), size, 2, training=False)


@pytest.mark.parametrize('shape', [(3, 32, 32), (1, 4, 32, 32), (1, 1, 32, 32), (2, 32, 32, 3)])
def test_other_inputs_are_refused(shape):
    with pytest.raises(ConfigError, match=r'expected images of shape \(B, in_channels=3, H, W\), got'):
        LaViT('nano')(torch.rand(shape))


PLAIN = dict(
    type='mmpretrain.VisionTransformer',
    arch=dict(embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=16),
    img_size=32,
    patch_size=8,
    out_type='featmap',
)


@examples(15)
@given(st.sets(st.integers(1, 3)).map(sorted), st.none() | st.integers(1, 5), st.tuples(SIDES, SIDES), st.booleans())
def test_plain_transformer(layers, reference_grid, size, training):
    init_default_scope('mmpretrain')
    model = WithLessAttention(PLAIN, layers, reference_grid).train(training)
    x = torch.rand(2, 3, *size)
    try:
        (out,) = model(x)
    except ConfigError as error:
        assert min(size) < 8 and 'patch' in str(error)
        return
    assert out.shape[:2] == (2, 16) and out.isfinite().all()


@examples(40)
@given(st.sampled_from(['backbone', 'layers', 'reference_grid']), JUNK)
def test_plain_transformer_with_junk(name, junk):
    init_default_scope('mmpretrain')
    kwargs = dict(backbone=PLAIN, layers=[1, 2], reference_grid=2) | {name: junk}
    try:
        model = WithLessAttention(**kwargs)
    except ConfigError as error:
        assert name in str(error)
        return
    assert model(torch.rand(1, 3, 32, 32))[0].isfinite().all()


class ProductsOnly(torch.Tensor):
    """A weight as those of quantisation libraries: it knows ``F.linear`` and little else."""

    @staticmethod
    def __new__(cls, weight):
        return torch.Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype)

    def __init__(self, weight):
        self.weight = weight

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.linear:
            x, weight, *bias = args
            return F.linear(x, weight.weight, *bias, **kwargs)
        if function is not torch.Tensor.detach and function.__name__ not in ('__get__', '__set__', 'requires_grad_'):
            raise NotImplementedError(function.__name__)
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        assert function is torch.ops.aten.detach.default, function
        return cls(args[0].weight)


@pytest.mark.parametrize('threads', [1, 2])
def test_weights_that_know_products_only(threads):
    torch.manual_seed(0)
    model, image = LaViT('nano').eval(), torch.randn(1, 3, 128, 160)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            wanted = model(image)
            for module in model.modules():
                if isinstance(module, nn.Linear):
                    module.weight = nn.Parameter(ProductsOnly(module.weight.detach()), requires_grad=False)
            torch.testing.assert_close(model(image), wanted, rtol=1e-3, atol=1e-4)
    finally:
        torch.set_num_threads(before)
