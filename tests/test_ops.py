"""The ops that torchvision computes for mmcv, against plain loops and, where they are, against mmcv's compiled ones."""

import importlib.util
import math
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv import ops
from torch import nn

from mmlavit.errors import UserError

FILE = Path(__file__).parents[1] / 'ops' / 'mmcv' / '_ext.py'
INSTALLED = sys.modules['mmcv._ext']
COMPILED = not INSTALLED.__file__.endswith('.py')
needs_compiled = pytest.mark.skipif(not COMPILED, reason="needs mmcv's compiled ops")


@pytest.fixture(scope='module')
def ext():
    """The module of this repository, whatever is installed."""
    spec = importlib.util.spec_from_file_location('mmlavit_mmcv_ops', FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def use_ext(ext, monkeypatch):
    """Let mmcv's Python code call it."""
    for name in ('nms', 'roi_align', 'focal_loss', 'deform_conv'):
        monkeypatch.setattr(sys.modules[f'mmcv.ops.{name}'], 'ext_module', ext)


@pytest.fixture
def use_compiled(monkeypatch):
    """Return a function that lets mmcv's Python code call its compiled ops."""

    def use():
        for name in ('nms', 'roi_align', 'focal_loss'):
            monkeypatch.setattr(sys.modules[f'mmcv.ops.{name}'], 'ext_module', INSTALLED)

    return use


# --- non-maximum suppression ---------------------------------------------------------------------


def make_boxes(count, device='cpu', seed=0):
    """Boxes of integer corners, so that many overlap by exactly the same share, with different scores."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 24, (count, 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1) + 1], 1)
    scores = rng.permutation(np.linspace(0.02, 0.98, count))
    return torch.tensor(boxes, dtype=torch.float32, device=device), torch.tensor(scores, dtype=torch.float32).to(device)


def compute_iou(a, b, offset):
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + offset) for i in (0, 1))
    areas = [(box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def loop_nms(boxes, scores, threshold, offset):
    kept = []
    for index in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if all(compute_iou(boxes[index], boxes[other], offset) <= threshold for other in kept):
            kept.append(index)
    return kept


def loop_soft_nms(boxes, scores, threshold, sigma, min_score, method, offset):
    scores, kept = dict(enumerate(scores)), []
    while scores:
        best = max(scores, key=scores.get)
        kept.append((best, scores.pop(best)))
        for other in list(scores):
            iou = compute_iou(boxes[best], boxes[other], offset)
            if method == 'gaussian':
                scores[other] *= math.exp(-iou * iou / sigma)
            elif iou >= threshold:
                scores[other] *= 1 - iou if method == 'linear' else 0
            if scores[other] < min_score:
                del scores[other]
    return kept


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.1, 0.5, 0.7])
def test_nms(device, threshold, offset):
    boxes, scores = make_boxes(80, device)
    dets, kept = ops.nms(boxes, scores, threshold, offset=offset)
    assert kept.tolist() == loop_nms(boxes.tolist(), scores.tolist(), threshold, offset)
    assert 10 < len(kept) < 80
    torch.testing.assert_close(dets, torch.cat([boxes, scores[:, None]], 1)[kept])


def test_offset_matters():
    boxes, scores = make_boxes(80)
    assert ops.nms(boxes, scores, 0.5, offset=0)[1].tolist() != ops.nms(boxes, scores, 0.5, offset=1)[1].tolist()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_nms_of_other_dtypes(device, dtype):
    boxes, scores = make_boxes(60, device)
    scores = scores.to(dtype)
    assert len(scores.unique()) == 60
    kept = ops.nms(boxes.to(dtype), scores, 0.5)[1]
    assert kept.tolist() == loop_nms(boxes.tolist(), scores.tolist(), 0.5, 0)


def test_nms_of_nothing(device):
    dets, kept = ops.nms(torch.zeros(0, 4, device=device), torch.zeros(0, device=device), 0.5)
    assert dets.shape == (0, 5)
    assert kept.shape == (0,)
    assert kept.dtype == torch.long


def test_nms_of_views(device):
    """Boxes and scores as columns of one tensor."""
    boxes, scores = make_boxes(60, device)
    dets = torch.cat([boxes, scores[:, None]], 1)
    assert ops.nms(dets[:, :4], dets[:, 4], 0.5)[1].tolist() == ops.nms(boxes, scores, 0.5)[1].tolist()


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms(device, method, offset):
    boxes, scores = make_boxes(60, device)
    options = dict(sigma=0.5, min_score=0.05, method=method, offset=offset)
    dets, kept = ops.soft_nms(boxes, scores, 0.3, **options)
    expected = loop_soft_nms(boxes.tolist(), scores.tolist(), 0.3, **options)
    assert 0 < len(expected) < 60
    assert kept.tolist() == [index for index, _ in expected]
    torch.testing.assert_close(dets[:, :4], boxes[kept])
    torch.testing.assert_close(dets[:, 4].cpu(), torch.tensor([score for _, score in expected]))


def test_soft_nms_of_nothing():
    dets, kept = ops.soft_nms(torch.zeros(0, 4), torch.zeros(0))
    assert dets.shape == (0, 5)
    assert kept.shape == (0,)


@needs_compiled
@pytest.mark.parametrize('offset', [0, 1])
def test_nms_as_compiled(device, use_compiled, offset):
    boxes, scores = make_boxes(300, device)
    boxes = boxes + torch.rand_like(boxes)
    ours = ops.nms(boxes, scores, 0.5, offset=offset)[1]
    soft = [ops.soft_nms(boxes, scores, method=method, offset=offset) for method in ('naive', 'linear', 'gaussian')]
    use_compiled()
    assert ours.tolist() == ops.nms(boxes, scores, 0.5, offset=offset)[1].tolist()
    for (dets, kept), method in zip(soft, ('naive', 'linear', 'gaussian')):
        their_dets, their_kept = ops.soft_nms(boxes, scores, method=method, offset=offset)
        assert kept.tolist() == their_kept.tolist()
        torch.testing.assert_close(dets, their_dets)


# --- RoIAlign ------------------------------------------------------------------------------------

SCALE = 0.25
# Inside, across two borders, outside, less than a pixel, of no size, and the whole of the second image.
ROIS = [
    (0, 3.0, 5.5, 21.0, 17.0),
    (0, -9.0, 12.0, 13.5, 60.0),
    (1, 80.0, 80.0, 95.0, 99.0),
    (0, 10.2, 10.4, 11.0, 11.1),
    (1, 8.0, 8.0, 8.0, 8.0),
    (1, 0.0, 0.0, 36.0, 28.0),
]


def as_contiguous(x):
    return x.contiguous()


def as_channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def as_view(x):
    """Every other column of a wider map."""
    wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), 1e9)
    wide[..., ::2] = x
    return wide[..., ::2]


LAYOUTS = [as_contiguous, as_channels_last, as_view]


def make_map(device, dtype=torch.float32):
    return torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(0)).to(device, dtype)


def sample(image, y, x):
    """Bilinear interpolation of an image (C, H, W); zero more than a pixel outside."""
    height, width = image.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return image.new_zeros(image.shape[0])
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    y, x = y - top, x - left
    above = (1 - x) * image[:, top, left] + x * image[:, top, right]
    below = (1 - x) * image[:, bottom, left] + x * image[:, bottom, right]
    return (1 - y) * above + y * below


def loop_roi_align(maps, rois, size, scale, ratio, aligned):
    rows, columns = size
    pooled = []
    for index, *corners in rois.tolist():
        left, top, right, bottom = (corner * scale - (0.5 if aligned else 0) for corner in corners)
        height, width = bottom - top, right - left
        if not aligned:
            height, width = max(height, 1), max(width, 1)
        height, width = height / rows, width / columns
        per_row, per_column = ratio or math.ceil(width), ratio or math.ceil(height)
        for row in range(rows):
            for column in range(columns):
                total = maps.new_zeros(maps.shape[1])
                for i in range(per_column):
                    for j in range(per_row):
                        y = top + height * (row + (i + 0.5) / per_column)
                        x = left + width * (column + (j + 0.5) / per_row)
                        total = total + sample(maps[int(index)], y, x)
                pooled.append(total / max(per_row * per_column, 1))
    return torch.stack(pooled).view(-1, rows, columns, maps.shape[1]).permute(0, 3, 1, 2)


def run_roi_align(align, maps, rois):
    """Return the output and the gradient for some gradient of the output, itself not contiguous."""
    maps = maps.detach().requires_grad_()
    output = align(maps, rois)
    weights = torch.linspace(-1, 1, output.numel(), device=maps.device).view(output.shape[::-1]).permute(3, 2, 1, 0)
    output.backward(weights.to(output.dtype))
    return output.detach(), maps.grad


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('aligned', [True, False], ids=['aligned', 'not aligned'])
@pytest.mark.parametrize('ratio', [0, 2])
def test_roi_align(device, ratio, aligned, layout):
    maps, rois, size = make_map(device), torch.tensor(ROIS, device=device), (2, 3)
    ours = run_roi_align(ops.RoIAlign(size, SCALE, ratio, aligned=aligned), layout(maps), rois)

    def loop(maps, rois):
        return loop_roi_align(maps, rois, size, SCALE, ratio, aligned)

    output, grad = run_roi_align(loop, maps.double().cpu(), rois.cpu())
    assert output.abs().sum() > 1
    torch.testing.assert_close(ours[0].cpu(), output.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[1].cpu(), grad.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_roi_align_in_half_precision(device, dtype):
    """Computed in float32, rounded once."""
    maps, rois = make_map(device, dtype), torch.tensor(ROIS, device=device).to(dtype)
    align = ops.RoIAlign(2, SCALE, 2)
    half, full = run_roi_align(align, maps, rois), run_roi_align(align, maps.float(), rois.float())
    for ours, expected in zip(half, full):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.float(), expected, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(half[0], full[0].to(dtype), rtol=0, atol=0)


def test_roi_align_under_autocast(device):
    """A convolution in half precision in front of it, as in mixed-precision training."""
    conv, maps = nn.Conv2d(3, 4, 1).to(device), make_map(device)
    rois = torch.tensor(ROIS, device=device)
    with torch.autocast(device, torch.bfloat16):
        features = conv(maps)
        pooled = ops.RoIAlign(2, SCALE, 2)(features, rois.type_as(features))
        pooled.float().square().sum().backward()
    assert pooled.dtype == torch.bfloat16
    expected = ops.RoIAlign(2, SCALE, 2)(features.float(), rois.bfloat16().float())
    torch.testing.assert_close(pooled.float(), expected, rtol=1e-2, atol=1e-2)
    assert conv.weight.grad.abs().sum() > 0


def test_roi_align_of_nothing(device):
    maps = make_map(device).requires_grad_()
    pooled = ops.RoIAlign(7, SCALE)(maps, torch.zeros(0, 5, device=device))
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()
    assert maps.grad.abs().sum() == 0


def test_roi_align_with_maximum(ext):
    with pytest.raises(UserError, match="pool_mode='max'.* OPS=compiled"):
        ops.RoIAlign(2, SCALE, pool_mode='max')(make_map('cpu'), torch.tensor(ROIS))


@needs_compiled
@pytest.mark.parametrize('aligned', [True, False], ids=['aligned', 'not aligned'])
@pytest.mark.parametrize('ratio', [0, 2])
def test_roi_align_as_compiled(device, use_compiled, ratio, aligned):
    maps = torch.randn(2, 16, 50, 68, device=device)
    corners = torch.rand(64, 2, 2, device=device) * 280 - 10
    rois = torch.cat([torch.arange(64, device=device)[:, None] % 2, corners.amin(1), corners.amax(1)], 1)
    align = ops.RoIAlign(7, SCALE, ratio, aligned=aligned)
    ours = run_roi_align(align, maps, rois)
    use_compiled()
    for mine, theirs in zip(ours, run_roi_align(align, maps, rois)):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


# --- focal loss ----------------------------------------------------------------------------------


def make_scores(device, dtype=torch.float32):
    """Scores of 40 samples for 5 classes, some far from zero, and classes with the background 5."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(40, 5, generator=generator) * 4
    scores[0, :2] = torch.tensor([60.0, -60.0])
    return scores.to(device, dtype), torch.randint(0, 6, (40,), generator=generator).to(device)


def run_focal_loss(loss, scores, target):
    scores = scores.detach().requires_grad_()
    value = loss(scores, target)
    value.backward(torch.linspace(-1, 2, value.numel(), device=scores.device).view(value.shape))
    return value.detach(), scores.grad


@pytest.mark.parametrize(('gamma', 'alpha'), [(2.0, 0.25), (1.5, 0.6), (0.0, 0.5)])
def test_focal_loss(device, gamma, alpha):
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

    def loss(scores, target):
        return ops.sigmoid_focal_loss(scores, target, gamma, alpha, None, 'none')

    def expected_loss(scores, target):
        one_hot = nn.functional.one_hot(target, 6)[:, :5]
        return py_sigmoid_focal_loss(scores, one_hot, gamma=gamma, alpha=alpha, reduction='none')

    ours = run_focal_loss(loss, *make_scores(device))
    expected = run_focal_loss(expected_loss, *make_scores(device))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(('gamma', 'alpha'), [(0.5, 0.25), (2.0, 1.5), (1.0, -1.0)])
def test_gradient_of_focal_loss_where_scores_are_certain(device, gamma, alpha):
    """The derivative by hand, in double precision; alpha weighs literally, also outside 0 to 1."""
    values = torch.tensor([-100.0, -30.0, -20.0, -1.0, 0.0, 1.0, 20.0, 30.0, 100.0], dtype=torch.float64)
    scores = values.float()[:, None].to(device).requires_grad_()
    for target in (0, 1):  # the class, and the background
        classes = torch.full((len(values),), target, device=device)
        (gradient,) = torch.autograd.grad(ops.sigmoid_focal_loss(scores, classes, gamma, alpha, None, 'sum'), scores)
        x = values if target else -values  # as if for the background
        p = x.sigmoid()
        expected = p**gamma * (p + gamma * (1 - p) * nn.functional.softplus(x))
        expected = expected * (1 - alpha) if target else expected * -alpha
        torch.testing.assert_close(gradient[:, 0].double().cpu(), expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_focal_loss_reduced_and_weighted(device, reduction):
    """The weight is that of the sample's class."""
    scores, target = make_scores(device)
    assert (target == 5).any()  # of the background, which weighs 1
    weight = torch.tensor([1.0, 0.0, 2.0, 3.0, 0.5], device=device)
    plain = ops.sigmoid_focal_loss(scores, target, 2.0, 0.25, None, 'none')
    expected = (plain * torch.cat([weight, weight.new_ones(1)])[target][:, None]).sum() / (
        len(scores) if reduction == 'mean' else 1
    )
    torch.testing.assert_close(ops.sigmoid_focal_loss(scores, target, 2.0, 0.25, weight, reduction), expected)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_focal_loss_in_half_precision(device, dtype):
    scores, target = make_scores(device, dtype)
    half = ops.sigmoid_focal_loss(scores, target, 2.0, 0.25, None, 'none')
    assert half.dtype == dtype
    full = ops.sigmoid_focal_loss(scores.float(), target, 2.0, 0.25, None, 'none')
    torch.testing.assert_close(half, full.to(dtype), rtol=0, atol=0)


def test_focal_loss_of_mmdet(device):
    """The loss of a RetinaNet; on the CPU, mmdet computes it by itself, on a GPU by ours."""
    from mmdet.models.losses import FocalLoss
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

    scores, target = make_scores(device)
    one_hot = nn.functional.one_hot(target, 6)[:, :5]
    expected = py_sigmoid_focal_loss(scores, one_hot, gamma=2.0, alpha=0.25)
    torch.testing.assert_close(FocalLoss()(scores, target), expected)


@needs_compiled
@pytest.mark.skipif(not torch.cuda.is_available(), reason='mmcv has it for CUDA only')
def test_focal_loss_as_compiled(use_compiled):
    def loss(scores, target):
        return ops.sigmoid_focal_loss(scores, target, 2.0, 0.25, None, 'none')

    ours = run_focal_loss(loss, *make_scores('cuda'))
    use_compiled()
    torch.testing.assert_close(ours, run_focal_loss(loss, *make_scores('cuda')), rtol=1e-4, atol=1e-6)


# --- the module ----------------------------------------------------------------------------------

MISSING = (
    "deform_conv_forward is none of the ops that torchvision provides to mmcv; it needs mmcv's compiled ops: make "
    'install OPS=compiled, or see "Compiled ops" in docs/get_started.md of mmlavit'
)


@pytest.mark.parametrize('with_mmlavit', [True, False])
def test_missing_op(monkeypatch, with_mmlavit):
    """It can be built, and says what to do when it runs; the tools print that in one line."""
    conv = ops.DeformConv2dPack(4, 4, 3)
    if not with_mmlavit:
        monkeypatch.delitem(sys.modules, 'mmlavit.errors')
    with pytest.raises(UserError if with_mmlavit else NotImplementedError) as caught:
        conv(torch.rand(1, 4, 9, 9))
    assert str(caught.value) == MISSING


def test_report_of_the_environment(ext, monkeypatch):
    """What mmcv and mmdet put at the head of every log."""
    from mmcv.utils import collect_env

    monkeypatch.setattr(sys.modules['mmcv.ops.info'], 'ext_module', ext)
    report = collect_env()
    assert report['MMCV Compiler'] == f'torchvision {metadata.version("torchvision")}' or '+' in report['MMCV Compiler']
    cuda = torch.version.cuda or 'not available'
    assert report['MMCV CUDA Compiler'] in (cuda, 'not available')


@pytest.mark.skipif(COMPILED, reason='needs the distribution of this repository')
def test_distribution_is_one_file():
    files = [str(file) for file in metadata.files('mmlavit-mmcv-ops') if '.dist-info' not in file.parts[0]]
    assert [file for file in files if '__pycache__' not in file] == ['mmcv/_ext.py']
    assert Path(INSTALLED.__file__).read_text() == FILE.read_text()
