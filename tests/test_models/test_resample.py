"""The cache of resampling matrices has an end, and fixed sizes do not feel it."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmlavit import LaViT
from mmlavit.models import resample
from mmlavit.models.resample import cached_matrix, resample_matrix, resample_tokens


@pytest.fixture
def cache(monkeypatch):
    """An empty cache for eight matrices."""
    matrices = {}
    monkeypatch.setattr(resample, '_matrices', matrices)
    monkeypatch.setattr(resample, '_MAX_MATRICES', 8)
    return matrices


def expected(x, src, dst):
    """Both axes by matrices that come from no cache."""
    rows, columns = (resample_matrix(*sizes) for sizes in zip(src, dst))
    grid = torch.einsum('yh,xw,bhwc->byxc', rows, columns, x.unflatten(1, src))
    return grid.flatten(1, 2)


def test_many_sizes(cache):
    for height in range(3, 40):
        x = torch.rand(1, height * 5, 2)
        for _ in range(2):
            torch.testing.assert_close(resample_tokens(x, (height, 5), (7, 7)), expected(x, (height, 5), (7, 7)))
        assert len(cache) <= 8
    assert len(cache) == 8


def test_fixed_size_makes_no_matrices_again(cache, monkeypatch):
    x = torch.rand(1, 65, 2)
    resample_tokens(x, (13, 5), (7, 7))
    monkeypatch.setattr(resample, 'resample_matrix', None)
    resample_tokens(x, (13, 5), (7, 7))


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_no_double_precision_on_the_device(cache):
    """Some devices have none."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            assert not (isinstance(out, torch.Tensor) and out.is_meta and out.dtype == torch.float64)
            return out

    with Watch():
        for sizes in ((7, 5), (5, 7)):
            assert cached_matrix(*sizes, torch.device('meta'), torch.float32).is_meta


def test_a_trace_fills_no_cache(cache):
    resampled = lambda x: resample_tokens(x, (x.shape[1] // 5, 5), (7, 7))  # noqa: E731
    torch.jit.trace(resampled, torch.rand(1, 65, 2), check_trace=False)
    assert not cache


def test_many_threads(cache):
    """They make room at the same time, and each gets its own result."""

    def work(seed):
        sizes = torch.randint(3, 40, (50,), generator=torch.Generator().manual_seed(seed)).tolist()
        for height in sizes:
            x = torch.rand(1, height * 5, 2)
            torch.testing.assert_close(resample_tokens(x, (height, 5), (7, 7)), expected(x, (height, 5), (7, 7)))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(cache) <= 8


def test_what_a_backbone_needs_fits(monkeypatch):
    """Every side to 1,344 pixels, in both modes: nothing has to go."""
    matrices = {}
    monkeypatch.setattr(resample, '_matrices', matrices)
    model = LaViT('nano').eval()
    with torch.inference_mode():
        for side in range(32, 1345, 32):
            model(torch.rand(1, 3, 32, side))
            model(torch.rand(1, 3, side, 32))
    assert len(matrices) < resample._MAX_MATRICES
    assert sum(matrix.nbytes for matrix in matrices.values()) < 2e6
