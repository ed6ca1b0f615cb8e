"""The peak of tensors, in cases that can be counted by hand."""

import pytest
import torch

from mmlavit.utils.tensor_peak import peak_tensor_bytes

N = 1000
BYTES = 4 * N


def grows():
    kept = [torch.ones(N) for _ in range(5)]
    return torch.cat(kept)


def chain():
    x = torch.ones(N)
    for _ in range(10):
        x = x + 1


def views():
    x = torch.ones(N)
    return [x[i:] for i in range(10)], x.view(10, -1).t(), x.add_(1)


def peak_before_end():
    x = torch.ones(N)
    y = torch.cat([x, x, x])
    del y
    return x + 1


@pytest.mark.parametrize(('run', 'times'), [(grows, 10), (chain, 2), (views, 1), (peak_before_end, 4)])
def test_by_hand(run, times):
    assert peak_tensor_bytes(run) == times * BYTES


def test_weights_do_not_count():
    layer = torch.nn.Linear(N, N)
    x = torch.ones(1, N)
    with torch.no_grad():
        assert peak_tensor_bytes(lambda: layer(x)) == BYTES


def test_twice():
    """Nothing is left of the first."""
    assert [peak_tensor_bytes(chain) for _ in range(3)] == [2 * BYTES] * 3
