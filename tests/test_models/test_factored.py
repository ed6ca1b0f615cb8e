"""Scores in factors, as GPUs take them in half precision, are the scores: compared with the plain way, on the CPU."""

import copy

import literal
import pytest
import torch

from mmlavit import LaViT
from mmlavit.analysis.ablation import ablate
from mmlavit.models import factored, lavit
from mmlavit.models.layout import Scores
from mmlavit.models.observation import observe_attention


@pytest.fixture
def factors(monkeypatch):
    """Have all less-attention layers take factors, whatever the device; counts how often a stage begins to."""
    begun = []

    def always(scores, query_grid):
        return isinstance(scores, Scores)

    def factor(scores, query_grid):
        begun.append(query_grid)
        return factored.factor(scores, query_grid)

    monkeypatch.setattr(lavit, 'factoring_pays', always)
    monkeypatch.setattr(lavit, 'factor', factor)
    return begun


def build(**kwargs):
    """A network whose transforms are far from the identity."""
    torch.manual_seed(0)
    model = LaViT(**{'arch': 'nano', 'drop_path_rate': 0.0, **kwargs})
    model.init_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if '.delta_' in name:
                parameter.normal_(std=0.3 / parameter.shape[0] ** 0.5)
    return model


@pytest.mark.parametrize('size', [(128, 128), (97, 161), (320, 96)], ids=str)
@pytest.mark.parametrize('kwargs', [{}, dict(arch='small'), dict(key_reduction='pool'), dict(with_cp=True)], ids=str)
def test_same_maps(kwargs, size, request):
    model, images = build(**kwargs).eval(), torch.randn(2, 3, *size)
    with torch.no_grad():
        wanted = model(images)
        begun = request.getfixturevalue('factors')
        found = model(images)
    assert len(begun) == sum(len(stage.blocks) > n for stage, n in zip(model.stages, (1, 1, 2, 1), strict=True))
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).norm() < 2e-5 * b.norm()


@pytest.mark.parametrize('with_cp', [False, True])
def test_same_gradients(with_cp, request):
    images = torch.randn(2, 3, 96, 160)

    def gradients():
        model = build(with_cp=with_cp)
        sum(out.square().mean() for out in model(images)).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    wanted = gradients()
    begun = request.getfixturevalue('factors')
    found = gradients()
    assert begun
    assert all(a is not None for a in found.values())
    norm = torch.cat([b.flatten() for b in wanted.values()]).norm()
    for name, b in wanted.items():
        assert (found[name] - b).norm() < 1e-4 * b.norm() + 1e-6 * norm, name


def average_by_matrices(scores, reference, deltas, grid):
    """Transform scores (B, N, H * K) by whole matrices, and average their queries to a smaller grid."""
    a = scores.map.double().unflatten(2, (scores.heads, -1)).transpose(1, 2)  # (B, H, N, K)
    up, down = literal.grid_matrix(reference, scores.grid), literal.grid_matrix(scores.grid, reference)
    for theta, psi in deltas:
        psi = torch.eye(len(up), dtype=torch.float64) + up @ psi.double() @ down
        a = psi @ a @ (torch.eye(len(theta), dtype=torch.float64) + theta.double()).T
    return (literal.grid_matrix(scores.grid, grid) @ a).transpose(1, 2).flatten(2)


@pytest.mark.parametrize('grid', [(4, 4), (7, 7), (14, 7), (3, 5)], ids=str)
def test_average(grid):
    """Over the factors where cells lie within cells, else over the scores."""
    scores = Scores(torch.randn(2, 40 * 30, 3 * 16), 3, (40, 30))
    factors = factored.factor(scores, (14, 14))
    deltas = list(zip(torch.randn(2, 16, 16) / 4, torch.randn(2, 196, 196) / 14, strict=True))
    for theta, psi in deltas:
        factors = factors.transform(theta, psi)
    wanted = average_by_matrices(scores, (14, 14), deltas, grid)
    torch.testing.assert_close(factors.average(grid).double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('own', 'reference', 'grid'), [((4, 32), (8, 8), (2, 4)), ((4, 56), (7, 7), (1, 7))], ids=str)
def test_average_where_one_side_is_shorter_than_the_reference_grid(own, reference, grid):
    """There the reference grid is interpolated, and its cells are no averages."""
    scores = Scores(torch.randn(2, own[0] * own[1], 3 * 16), 3, own)
    queries = reference[0] * reference[1]
    factors = factored.factor(scores, reference)
    theta, psi = torch.randn(16, 16) / 4, torch.randn(queries, queries) / 8
    factors = factors.transform(theta, psi)
    wanted = average_by_matrices(scores, reference, [(theta, psi)], grid)
    torch.testing.assert_close(factors.average(grid).double(), wanted, rtol=1e-4, atol=1e-4)


def test_observers_see_the_same_scores(factors):
    model, images = build(arch='small').eval(), torch.randn(1, 3, 96, 64)
    layers = {}
    for pays in (True, False):
        lavit.factoring_pays = (lambda scores, query_grid: isinstance(scores, Scores)) if pays else lambda *_: False
        with torch.no_grad(), observe_attention(model, lambda o: layers.setdefault(o.name, []).append(o.scores)):
            model(images)
    assert len(layers) == 16
    for a, b in layers.values():
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('what', ['transforms', 'uniform', 'none'])
def test_ablation(what, request):
    model, images = build().eval(), torch.randn(1, 3, 64, 96)
    ablate(model, what, (1, 1, 1, 1))
    with torch.no_grad():
        wanted = copy.deepcopy(model)(images)
        begun = request.getfixturevalue('factors')
        found = model(images)
    assert begun
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).norm() < 2e-5 * b.norm()


def test_standardise_and_mix():
    """What a GPU computes of attention residuals, against the formula; far from zero, where float16 has few digits."""
    x = torch.randn(2, 3, 50, 16, dtype=torch.float64) * torch.tensor([0.01, 1, 40]).view(3, 1, 1) + 7
    mix = torch.randn(4, 3, dtype=torch.float64)
    standard = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    wanted = torch.einsum('oi,bink->bonk', mix, standard)
    torch.testing.assert_close(lavit._standardise_and_mix(x, mix, 1e-5), wanted)
    half = (100 * x).half()  # whose squares are beyond float16
    large = half.double()
    standard = (large - large.mean((2, 3), keepdim=True)) / large.std((2, 3), keepdim=True, correction=0)
    wanted = torch.einsum('oi,bink->bonk', mix, standard)
    found = lavit._standardise_and_mix(half, mix.half(), 1e-5).double()
    assert (found - wanted).norm() < 2e-3 * wanted.norm()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16])
def test_not_on_a_cpu(dtype):
    assert not factored.factoring_pays(Scores(torch.zeros(1, 4096, 49, dtype=dtype), 1, (64, 64)), (7, 7))


@pytest.mark.parametrize('dynamic', [False, True])
def test_one_graph(dynamic, factors, monkeypatch):
    monkeypatch.setattr(lavit, 'factor', factored.factor)  # the list of the fixture would be guarded, too
    torch._dynamo.reset()
    model, sizes = (
        build(out_indices=[1]).eval(),
        [(160, 192), (192, 256)],
    )  # above those that graphs are made for of their own
    graphs = []
    compiled = torch.compile(
        model, fullgraph=True, dynamic=dynamic, backend=lambda graph, inputs: graphs.append(graph) or graph.forward
    )
    for size in sizes:
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            for a, b in zip(compiled(images), model(images), strict=True):
                assert (a - b).norm() < 2e-5 * b.norm()
    assert len(graphs) == (1 if dynamic else len(sizes))
