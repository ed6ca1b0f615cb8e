"""Statistics of attention, against loops over heads and queries."""

import math

import numpy as np
import pytest
import torch
from documents import ROOT
from matplotlib.figure import Figure
from mmengine.registry import MODELS
from scipy.optimize import linear_sum_assignment
from shell_commands import load
from small_vit import VIT

from mmlavit import LaViT
from mmlavit.analysis.attention import LayerAttention, choose_depths, choose_layers, measure_attention
from mmlavit.analysis.controls import LaViTControl
from mmlavit.analysis.saturation import plot_attention
from mmlavit.errors import ConfigError
from mmlavit.models.observation import observe_attention
from mmlavit.models.plain_vit import WithLessAttention
from mmlavit.utils.toolbox import load_toolbox


def randomise(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    model.eval()  # mmpretrain's gives nothing back
    return model


def lavit(**kwargs):
    return randomise(LaViT('nano', num_va_layers=(2, 2, 2, 1), **kwargs))


def plain(layers=()):
    load_toolbox('mmpretrain')
    model = WithLessAttention(VIT, layers) if layers else MODELS.build(VIT)
    return randomise(model)


BACKBONES = dict(lavit=lavit, twin=lambda: randomise(LaViT('nano', num_va_layers=(2, 2, 3, 2))), vit=plain)
BACKBONES['converted'] = lambda: plain((2, 3))


def images(size=(64, 96)):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def collect(backbone, x):
    seen = []
    with torch.no_grad(), observe_attention(backbone, seen.append):
        backbone(x)
    return seen


def test_plot_of_models_of_other_depths(tmp_path, monkeypatch):
    """Each layer stands at its stage and number."""
    figures = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, *args, **kwargs: figures.append(figure))
    models = []
    for depths in ((1, 2), (2, 1)):
        names = [f'stages.{stage}.blocks.{i}' for stage, depth in enumerate(depths) for i in range(depth)]
        models.append((str(depths), [LayerAttention(name, False, *[0.5] * 5) for name in names]))
    plot_attention(models, tmp_path / 'attention.png')
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ['1.1', '1.2', '2.1', '2.2']
    lines = [[*line.get_xdata()] for line in axes.lines if len(line.get_xdata()) == 3]
    assert lines == [[0, 2, 3], [0, 1, 2]]
    assert [*axes.lines[-1].get_xdata()] == [1.5, 1.5]  # between the stages


@pytest.mark.parametrize('kind', BACKBONES)
def test_all_layers_are_observed_and_nothing_changes(kind):
    backbone, x = BACKBONES[kind](), images()
    with torch.no_grad():
        before = backbone(x)
    seen = collect(backbone, x)
    kept = [module.keep_scores for module in backbone.modules() if hasattr(module, 'keep_scores')]
    with torch.no_grad():
        after = backbone(x)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert len(collect(backbone, x)) == len(seen)  # nothing is left behind that would be called twice
    assert [module.keep_scores for module in backbone.modules() if hasattr(module, 'keep_scores')] == kept
    less = dict(lavit=[0, 0, 0, 0, 0, 0, 1, 0, 1], twin=[0] * 9, vit=[0] * 4, converted=[0, 0, 1, 1])[kind]
    assert [layer.less for layer in seen] == less
    assert len({layer.name for layer in seen}) == len(seen)


def test_scores_of_a_plain_transformer_are_its_attention():
    """Softmax of them times the values is what the package's own attention gives."""
    vit, x = plain(), images()
    inputs = {}
    for i, block in enumerate(vit.layers):
        block.attn.register_forward_hook(lambda module, args, out, i=i: inputs.update({i: (args[0], out)}))
    for i, layer in enumerate(collect(vit, x)):
        attn = vit.layers[i].attn
        tokens, out = inputs[i]
        values = attn.qkv(tokens).chunk(3, -1)[2].unflatten(-1, (2, 16)).transpose(1, 2)
        found = attn.proj((layer.scores.softmax(-1) @ values).transpose(1, 2).flatten(2))
        torch.testing.assert_close(found, out, rtol=1e-4, atol=1e-5)
        assert (layer.extra, layer.grid, layer.key_grid) == (1, (4, 6), (4, 6))


def by_loops(before, now):
    """Literally, for one layer and the one before it."""
    a, b = (layer.scores.double().softmax(-1).numpy() for layer in (before, now))  # (B, H, N, K)
    batch, heads, queries, keys = b.shape
    cosines = np.zeros((heads, heads))
    for h in range(heads):
        for g in range(heads):
            for i in range(batch):
                for n in range(queries):
                    u, v = a[i, h, n], b[i, g, n]
                    cosines[h, g] += u @ v / np.linalg.norm(u) / np.linalg.norm(v) / batch / queries
    similarity = cosines[linear_sum_assignment(-cosines)].mean()
    alignment = distance = entropy = rank = 0
    (h_q, w_q), (h_k, w_k) = now.grid, now.key_grid
    for i in range(batch):
        grams = []
        for attention in (a, b):
            features = np.concatenate([attention[i, h] for h in range(heads)], axis=1)  # (N, H * K)
            centring = np.eye(queries) - 1 / queries
            grams.append(centring @ features @ features.T @ centring)
        alignment += np.sum(grams[0] * grams[1]) / np.linalg.norm(grams[0]) / np.linalg.norm(grams[1]) / batch
        for h in range(heads):
            values = np.linalg.svd(b[i, h], compute_uv=False)
            values = values / values.sum()
            rank += np.exp(-(values * np.log(values)).sum()) / keys / batch / heads
            for n in range(queries):
                entropy -= (b[i, h, n] * np.log(b[i, h, n])).sum() / math.log(keys) / batch / heads / queries
            cells = b[i, h, now.extra :, now.extra :]
            for n in range(len(cells)):
                for k in range(cells.shape[1]):
                    y = (n // w_q + 0.5) / h_q - (k // w_k + 0.5) / h_k
                    x = (n % w_q + 0.5) / w_q - (k % w_k + 0.5) / w_k
                    weight = cells[n, k] / cells[n].sum()
                    distance += weight * math.hypot(x, y) / batch / heads / len(cells)
    return [similarity, alignment, distance, entropy, rank]


@pytest.mark.parametrize('kind', ['lavit', 'vit'])
def test_statistics_are_those_of_loops(kind):
    backbone, x = BACKBONES[kind](), images()
    seen = collect(backbone, x)
    found = measure_attention(backbone, [x[:1], x[1:]])
    assert [layer.name for layer in found] == [layer.name for layer in seen]
    pair = 7 if kind == 'lavit' else 2  # stage 4, its second layer
    if kind == 'lavit':
        pair = 8
    # Heads are matched for each batch, so the literal value is of each image alone.
    single = [
        by_loops(*(layer._replace(scores=layer.scores[i : i + 1]) for layer in seen[pair - 1 : pair + 1]))
        for i in range(2)
    ]
    np.testing.assert_allclose(found[pair][2:], np.mean(single, axis=0), rtol=1e-4)


def test_the_first_layer_of_a_stage_has_none_before_it():
    found = measure_attention(lavit(), [images()])
    assert [layer.similarity is None for layer in found] == [j == 0 for depth in (2, 2, 3, 2) for j in range(depth)]
    assert [layer.alignment is None for layer in found] == [layer.similarity is None for layer in found]


def test_limits():
    """Attention that is uniform, and layers that are the same."""
    vit = plain()
    for block in vit.layers:
        block.attn.qkv.weight.data.zero_()
        block.attn.qkv.bias.data.zero_()
    last = measure_attention(vit, [images((64, 64))])[-1]
    keys = 17
    wanted = dict(similarity=1, entropy=1, rank=1 / keys)
    for name, value in wanted.items():
        assert getattr(last, name) == pytest.approx(value, abs=1e-6)
    # Mean distance of two random points of a square is 0.5214; of the centres of 4 x 4 cells:
    centres = [((i + 0.5) / 4, (j + 0.5) / 4) for i in range(4) for j in range(4)]
    assert last.distance == pytest.approx(np.mean([math.dist(p, q) for p in centres for q in centres]))


def layers_with(similarities):
    return [LayerAttention(name, False, value, value, 0, 0, 0) for name, value in similarities.items()]


def test_choices():
    vit = layers_with({f'layers.{i}': s for i, s in enumerate([None, 0.2, 0.9, 0.5, 0.8])})
    assert choose_layers(vit, 2) == [2, 4]
    assert choose_layers(vit, 0) == []
    stages = [[None, 0.4], [None, 0.9], [None, 0.99, 0.8, 0.7]]
    names = {f'stages.{s}.blocks.{j}': v for s, stage in enumerate(stages) for j, v in enumerate(stage)}
    lavit = layers_with(names)
    assert choose_depths(lavit, 0) == [2, 2, 4]
    assert choose_depths(lavit, 1) == [2, 1, 4]
    assert choose_depths(lavit, 2) == [2, 1, 3]  # 0.99 has to wait for its followers
    assert choose_depths(lavit, 5) == [1, 1, 1]


def test_stages_that_are_not_run():
    """They keep their layers in the line that is advised."""
    tool = load(ROOT / 'tools/analysis_tools/analyze_attention.py')
    lavit = layers_with({f'stages.{s}.blocks.{j}': 0.5 for s in range(3) for j in range(2)})
    assert tool.choice(lavit, 3, (2, 2, 2, 5)).endswith('num_va_layers=[1, 1, 1, 5]')


@pytest.mark.parametrize('later', ['fixed', 'none', 'uniform', 'shared'])
def test_controls_are_refused(later):
    """Their layers do not attend by the scores that are handed on."""
    with pytest.raises(ConfigError, match=rf"LaViTControl has something else .*later='{later}'"):
        measure_attention(LaViTControl('nano', later=later), [torch.randn(1, 3, 64, 64)])


def test_errors():
    with pytest.raises(ConfigError, match='no plain vision transformer'):
        measure_attention(torch.nn.Linear(2, 2), [images()])
    with pytest.raises(ValueError, match='no images'):
        measure_attention(lavit(), [])
