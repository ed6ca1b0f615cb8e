"""LaViT-S counted twice more, by means that share nothing with the counter: pen and paper, and torch's profiler."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from mmlavit import LaViT
from mmlavit.analysis.flops import count_complexity


def by_pen(height, width):
    """Multiply-adds of LaViT-S in millions, from the specification; norms, softmax and resampling are left out.

    N tokens a stage, M keys on the stride-32 grid, 49 reference keys. A product of N tokens with the reference keys or
    values of H heads holds a projection: N * H * 49 * C, and 49 * C * C to make it. Only the 49 tokens of stage 4 at
    224 px are projected instead, since that costs less: N * C * C and N * 49 * C.
    """
    m = height * width / 1024
    n1, n2, n3, n4 = (height * width / stride**2 for stride in (4, 8, 16, 32))
    h4 = 1 if n4 == 49 else 8  # and 49 * C * C is N * C * C
    stages = [
        # Patch embedding; feed-forward: two linears and a 3x3 depthwise convolution; reduction of keys and values.
        n1 * 3 * 4 * 4 * 64 + 3 * (n1 * 2 * 64 * 256 + n1 * 256 * 9 + m * 8 * 8 * 64 * 64),
        n2 * 64 * 2 * 2 * 128 + 4 * (n2 * 2 * 128 * 1024 + n2 * 1024 * 9 + m * 4 * 4 * 128 * 128),
        n3 * 128 * 2 * 2 * 320 + 6 * (n3 * 2 * 320 * 1280 + n3 * 1280 * 9 + m * 2 * 2 * 320 * 320),
        n4 * 320 * 2 * 2 * 512 + 3 * (n4 * 2 * 512 * 2048 + n4 * 2048 * 9),
    ]
    # Less attention, 2, 3, 4 and 2 layers: values, output, Theta, Psi.
    stages += [
        2 * (2 * 49 * 64**2 + n1 * 1 * 49 * 64 + n1 * 1 * 49 * 49 + 49 * 49 * 1 * 49),
        3 * (2 * 49 * 128**2 + n2 * 2 * 49 * 128 + n2 * 2 * 49 * 49 + 49 * 49 * 2 * 49),
        4 * (2 * 49 * 320**2 + n3 * 5 * 49 * 320 + n3 * 5 * 49 * 49 + 196 * 196 * 5 * 49),
        2 * (2 * 49 * 512**2 + n4 * h4 * 49 * 512 + n4 * 8 * 49 * 49 + 49 * 49 * 8 * 49),
    ]
    if m == 49:
        # Vanilla layers, 1, 1, 2 and 1: keys, values, scores, output.
        stages += [
            1 * (4 * 49 * 64**2 + 2 * n1 * 1 * 49 * 64),
            1 * (4 * 49 * 128**2 + 2 * n2 * 2 * 49 * 128),
            2 * (4 * 49 * 320**2 + 2 * n3 * 5 * 49 * 320),
            1 * (4 * 49 * 512**2 + 2 * n4 * h4 * 49 * 512),
        ]
        residual = 0
    else:
        # Keys and values, queries and output, attention on all M keys; once a stage also scores on 49 keys, of queries
        # that are there.
        stages += [
            1 * (2 * m * 64**2 + 2 * n1 * 64**2 + 2 * n1 * m * 64) + n1 * 49 * 64,
            1 * (2 * m * 128**2 + 2 * n2 * 128**2 + 2 * n2 * m * 128) + n2 * 49 * 128,
            2 * (2 * m * 320**2 + 2 * n3 * 320**2 + 2 * n3 * m * 320) + n3 * 49 * 320,
            1 * (2 * m * 512**2 + 2 * n4 * 512**2 + 2 * n4 * m * 512) + n4 * 49 * 512,
        ]
        # 64 columns of queries, keys and values grow by 49 of the attention residual, to 120, a multiple of eight.
        residual = 2 * m * (120 - 64) * (n2 * 2 + n3 * 5 + n4 * 8)
    # The attention residual: 2x2 depthwise over the queries, 1x1 over heads.
    residual += n2 * 49 * (4 * 1 + 1 * 2) + n3 * 49 * (4 * 2 + 2 * 5) + n4 * 49 * (4 * 5 + 5 * 8)
    return (sum(stages) + residual) / 1e6


@pytest.mark.parametrize(('size', 'published'), [((224, 224), 3300), ((800, 1344), None)], ids=str)
def test_count_by_pen(size, published):
    model = LaViT('small').eval().to('meta')
    counted = count_complexity(model, lambda: model(torch.zeros(1, 3, *size, device='meta'))).macs / 1e6
    assert counted == pytest.approx(by_pen(*size), rel=0.01)
    if published:
        assert counted == pytest.approx(published, rel=0.01)


@pytest.mark.filterwarnings('ignore:.*Profiler clears events')
@pytest.mark.parametrize('size', [(224, 224), (256, 320)], ids=str)
def test_count_by_the_profiler(size):
    """It adds up FLOPs of operators in C++, while they compute; fused attention has none, so it is taken apart."""
    model = LaViT('small').eval()
    image = torch.zeros(1, 3, *size)
    # With gradients: without, a feed-forward may compute its map in strips, and rows between them twice.
    with sdpa_kernel(SDPBackend.MATH), profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiler:
        model(image)
    products = ('aten::conv2d', 'aten::mm', 'aten::addmm', 'aten::bmm', 'aten::baddbmm')
    flops = sum(event.flops for event in profiler.key_averages() if event.key in products)
    assert flops == 2 * count_complexity(model, lambda: model(image)).macs
