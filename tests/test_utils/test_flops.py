"""Multiply-adds against a count by hand from the architecture's sizes."""

import pytest
import torch
from torch import nn

from mmlavit import LaViT
from mmlavit.models import ARCH_ZOO
from mmlavit.utils.flops import count_complexity

K = 49  # reference keys of tiny, small and base


def resample(src, dst, channels):
    """Products of the two axis matrices, in the order that costs least."""
    total, (h, w) = 0, src
    if dst[0] < h:
        total, h = total + dst[0] * h * w * channels, dst[0]
    if dst[1] != w:
        total, w = total + h * dst[1] * w * channels, dst[1]
    if dst[0] > h:
        total += dst[0] * h * w * channels
    return total


def by_hand(name, size, pool=False, num_va_layers=None, attention_residual=True):
    """Backbone multiply-adds, term by term."""
    arch, total, stride, channels = ARCH_ZOO[name], 0, 4, 3
    num_va_layers = num_va_layers or arch.num_va_layers
    height, width = size
    keys = (height // 32, width // 32)
    m = keys[0] * keys[1]
    for i in range(4):
        dim, heads, hidden = (
            arch.embed_dims[i],
            arch.num_heads[i],
            arch.embed_dims[i] * arch.mlp_ratios[i],
        )
        grid = (height // stride, width // stride)
        n, ratio, kernel = grid[0] * grid[1], 32 // stride, (4, 2, 2, 2)[i]
        query_grid = (arch.query_grids[i],) * 2
        total += n * dim * channels * kernel**2
        residual = attention_residual and i > 0
        if residual:
            total += n * arch.num_heads[i - 1] * K * 4 + n * heads * arch.num_heads[i - 1] * K
        reduction = m * dim * dim * ratio**2 if ratio > 1 else 0
        attend = K * dim * dim + n * heads * K * dim  # V_h W_h, then softmax(A) times that
        scores = dim * dim * K + n * dim * heads * K  # W_h^T K_h^T, then x times that
        for j in range(arch.depths[i]):
            total += reduction + 2 * n * dim * hidden + n * hidden * 9
            if j >= num_va_layers[i]:
                total += resample(keys, (7, 7), dim) + K * dim * dim + attend
                total += n * heads * K * K + (query_grid[0] * query_grid[1]) ** 2 * heads * K
                total += resample(grid, query_grid, heads * K) + resample(query_grid, grid, heads * K)
                continue
            last = j == num_va_layers[i] - 1
            kept = last and (arch.depths[i] > num_va_layers[i] or (attention_residual and i < 3))
            if pool or keys == (7, 7):
                total += resample(keys, (7, 7), dim) + K * dim * 2 * dim + scores + attend
                continue
            total += n * dim * dim * 2 + m * dim * 2 * dim  # q, proj, kv
            if residual and j == 0:
                columns = dim // heads + K
                columns += -columns % 8
                total += 2 * n * m * heads * columns + resample((7, 7), keys, K)
            else:
                total += 2 * n * m * dim
            if kept:
                total += resample(keys, (7, 7), dim) + scores
        channels, stride = dim, stride * 2
    return total


@pytest.mark.parametrize('pool', [False, True], ids=['conv', 'pool'])
@pytest.mark.parametrize('size', [(224, 224), (320, 448)], ids=str)
@pytest.mark.parametrize('name', ['tiny', 'small', 'base'])
def test_backbone_equals_the_hand_count(name, size, pool):
    model = LaViT(name, key_reduction='pool' if pool else 'conv').eval()
    counted = count_complexity(model, lambda: model(torch.zeros(1, 3, *size)))
    assert counted.macs == by_hand(name, size, pool)
    assert counted.params == sum(p.numel() for p in model.parameters())


def test_vanilla_twin_equals_the_hand_count():
    depths = ARCH_ZOO['small'].depths
    model = LaViT('small', num_va_layers=depths, attention_residual=False).eval()
    counted = count_complexity(model, lambda: model(torch.zeros(1, 3, 320, 448)))
    assert counted.macs == by_hand('small', (320, 448), num_va_layers=depths, attention_residual=False)


def saved_by_folding(name):
    """Multiply-adds at 224 px that folding projections into the 49 reference keys saves: formulas as written, less."""
    arch, saved = ARCH_ZOO[name], 0
    for i in range(4):
        n, dim, heads = (56 >> i) ** 2, arch.embed_dims[i], arch.num_heads[i]
        folded = K * dim * dim + n * heads * K * dim  # either projection, once folded
        written = n * dim * dim + n * K * dim
        saved += (arch.depths[i] + arch.num_va_layers[i]) * (written - folded)
    return saved


@pytest.mark.parametrize(
    ('name', 'table', 'published'), [('tiny', 1.53, 1.6), ('small', 3.39, 3.3), ('base', 6.07, 6.1)]
)
def test_cost_at_224(name, table, published):
    """The formulas as written cost what the specification says; what runs is the same function for a little less."""
    runs = by_hand(name, (224, 224)) + 512 * 1000
    written = runs + saved_by_folding(name)
    assert written / 1e9 == pytest.approx(table, rel=0.02)
    assert written / 1e9 == pytest.approx(published, rel=0.06)
    assert 0.95 * written < runs < written


@pytest.mark.parametrize(
    ('name', 'conv', 'pool', 'twin'),
    [('tiny', 56, 32, 66), ('small', 99, 70, 139), ('base', 153, 124, 233)],
)
def test_cost_at_detection_size(name, conv, pool, twin):
    """No more than the specification's table at 800x1344."""
    depths, size = ARCH_ZOO[name].depths, (800, 1344)
    assert by_hand(name, size) / 1e9 < conv * 1.02
    assert by_hand(name, size, pool=True) / 1e9 < pool * 1.02
    vanilla = by_hand(name, size, num_va_layers=depths, attention_residual=False)
    assert vanilla / 1e9 == pytest.approx(twin, rel=0.02)


def test_attention_of_other_models_is_counted():
    """nn.MultiheadAttention: four projections and the two products, also in eval mode."""
    attention = nn.MultiheadAttention(32, 4, batch_first=True).eval()
    x = torch.randn(2, 10, 32)
    counted = count_complexity(attention, lambda: attention(x, x, x, need_weights=False))
    assert counted.macs == 2 * (4 * 10 * 32 * 32 + 2 * 10 * 10 * 32)
