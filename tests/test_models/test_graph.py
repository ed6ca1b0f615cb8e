"""What the backbone looks like to a compiler and to the allocator."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmlavit import LaViT


class Shapes(TorchDispatchMode):
    """Records the shape of every tensor that an operator returns, and the elements of the memory behind it."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor):
                stored = t.untyped_storage().nbytes() // t.element_size()  # an expanded tensor is no memory
                self.seen[tuple(t.shape)] = max(stored, self.seen.get(tuple(t.shape), 0))
        return out


def largest_pairs(shapes, tokens, keys):
    """Shapes that pair the tokens of a stage with all its keys."""
    return [shape for shape in shapes if keys in shape and any(n in shape for n in tokens)]


SIZE = (544, 736)
KEYS = 17 * 23  # a number that no channel or grid has
TOKENS = [136 * 184, 68 * 92, 34 * 46]


@pytest.mark.parametrize('training', [False, True], ids=['inference', 'training'])
def test_nothing_of_all_tokens_by_all_keys_exists(training):
    model = LaViT('tiny').train(training)
    with Shapes() as shapes, torch.set_grad_enabled(training):
        outs = model(torch.rand(1, 3, *SIZE))
        if training:
            sum(out.mean() for out in outs).backward()
    assert any(KEYS in shape for shape in shapes.seen)  # the vanilla layers do read all keys
    assert not largest_pairs(shapes.seen, TOKENS, KEYS)


def test_the_search_for_such_a_matrix_finds_one():
    query, key = torch.rand(1, TOKENS[2], 8), torch.rand(1, KEYS, 8)
    with Shapes() as shapes:
        query @ key.transpose(1, 2)
    assert largest_pairs(shapes.seen, TOKENS, KEYS) == [(1, TOKENS[2], KEYS)]


@pytest.mark.parametrize('training', [False, True], ids=['inference', 'training'])
@pytest.mark.parametrize('key_reduction', ['conv', 'pool'])
def test_largest_tensor_at_detection_size(key_reduction, training):
    """It is the hidden map of the first stage's feed-forward, 64 * 4 channels of stride 4, and no matrix of scores."""
    LaViT('small', out_indices=(0,), key_reduction=key_reduction)(torch.rand(1, 3, 672, 672))  # real matrices are kept
    with FakeTensorMode():
        model = LaViT('small', key_reduction=key_reduction).train(training)
        with Shapes() as shapes, torch.set_grad_enabled(training):
            outs = model(torch.rand(1, 3, 800, 1344))
            if training:
                sum(out.mean() for out in outs).backward()
    assert max(shapes.seen.values()) == 200 * 336 * 64 * 4


def test_checkpointed_blocks_compile():
    torch._dynamo.reset()
    model = LaViT('nano', with_cp=True, drop_path_rate=0.0, out_indices=(0, 1)).train()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    x, gradients = torch.rand(2, 3, 64, 96), []
    for run in (compiled, model):
        outs = run(x)
        gradients.append(torch.autograd.grad(sum(out.square().mean() for out in outs), list(model.parameters())))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_compiles_to_one_graph():
    torch._dynamo.reset()
    model = LaViT('nano').eval()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    x = torch.rand(2, 3, 97, 161)
    with torch.no_grad():
        for out, expected in zip(compiled(x), model(x), strict=True):
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('key_reduction', 'training'), [('conv', True), ('pool', False)])
def test_one_graph_serves_many_sizes(key_reduction, training):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    # Two stages have every kind of layer, and compile in half the time.
    options = dict(key_reduction=key_reduction, drop_path_rate=0.0, out_indices=(0, 1))
    model = LaViT('nano', **options).train(training)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    with torch.set_grad_enabled(training):
        for batch, height, width in ((2, 170, 300), (3, 333, 222), (2, 241, 419)):
            x = torch.rand(batch, 3, height, width)
            for out, expected in zip(compiled(x), model(x), strict=True):
                torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    assert len(graphs) == 1


@pytest.mark.parametrize('key_reduction', ['conv', 'pool'])
def test_one_exported_program_serves_many_sizes(key_reduction, tmp_path):
    """Saved and loaded; above, below and on the reference grids; sides are multiples of 32, to which one pads."""
    model = LaViT('nano', key_reduction=key_reduction, out_indices=(0, 1)).eval()
    height, width = 32 * Dim('height', min=2, max=64), 32 * Dim('width', min=2, max=64)
    shapes = {0: Dim.DYNAMIC, 2: height, 3: width}
    program = torch.export.export(model, (torch.rand(3, 3, 160, 224),), dynamic_shapes=(shapes,))
    # Each matrix once, not once for each layer: of rows and of columns, to and from the reference grids of keys (which
    # pooling leads to and nothing from) and of the queries of both stages. A matrix has two forms of two aranges each.
    aranges = [node for node in program.graph.nodes if node.target is torch.ops.aten.arange.default]
    assert len(aranges) == 4 * 2 * ((2 if key_reduction == 'conv' else 1) + 2 * 2)
    torch.export.save(program, tmp_path / 'lavit.pt2')
    program = torch.export.load(tmp_path / 'lavit.pt2')
    for batch, *size in ((1, 64, 96), (2, 128, 128), (3, 320, 256)):
        x = torch.rand(batch, 3, *size)
        with torch.no_grad():
            for out, expected in zip(program.module()(x), model(x), strict=True):
                torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
