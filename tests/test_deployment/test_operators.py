"""Post-processing in export form against torch, torchvision and mmdet."""

import pytest
import torch
import torchvision
from mmcv.ops import RoIAlign as MMCVRoIAlign
from mmdet.models.task_modules import DeltaXYWHBBoxCoder
from mmseg.models.utils import Upsample as MMSegUpsample
from torch import nn

from mmlavit.deployment.boxes import BoxDecoder, highest, keep_apart, roi_align
from mmlavit.deployment.layers import AdaptiveAvgPool2d, Upsample, replace_layers
from mmlavit.errors import ConfigError


@pytest.mark.parametrize('output', [1, 2, 3, 6])
@pytest.mark.parametrize('size', [(6, 6), (7, 5), (1, 13), (25, 17)])
def test_adaptive_pooling(output, size):
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    expected = nn.AdaptiveAvgPool2d(output)(x)
    torch.testing.assert_close(AdaptiveAvgPool2d(output)(x), expected, rtol=1e-12, atol=1e-12)


def test_adaptive_pooling_is_found_at_any_depth():
    model = nn.Sequential(nn.Sequential(nn.AdaptiveAvgPool2d(3)), nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((1, 1)))
    model.append(nn.AdaptiveAvgPool2d((2, 2)))
    replace_layers(model)
    assert isinstance(model[0][0], AdaptiveAvgPool2d) and isinstance(model[3], AdaptiveAvgPool2d)
    x = torch.rand(1, 2, 5, 6)
    torch.testing.assert_close(model[3](x), nn.AdaptiveAvgPool2d(2)(x))
    assert isinstance(model[1], nn.AdaptiveAvgPool2d) and isinstance(model[2], nn.AdaptiveAvgPool2d)
    with pytest.raises(ConfigError, match='pools to'):
        replace_layers(nn.Sequential(nn.AdaptiveAvgPool2d((2, 3))))


def test_upsample():
    x = torch.rand(2, 3, 5, 7)
    for mode, align_corners in (('nearest', None), ('bilinear', False), ('bilinear', True)):
        model = nn.Sequential(MMSegUpsample(scale_factor=2, mode=mode, align_corners=align_corners))
        expected = model(x)
        replace_layers(model)
        assert isinstance(model[0], Upsample)
        torch.testing.assert_close(model(x), expected)
    for options in (dict(size=(4, 4)), dict(scale_factor=1.5)):
        with pytest.raises(ConfigError, match='whole scale_factor'):
            replace_layers(nn.Sequential(MMSegUpsample(**options)))


@pytest.mark.parametrize('number', [0, 3, 10, 50])
def test_highest(number):
    scores = torch.randn(number)
    values, indices = highest(scores, 10)
    there = min(number, 10)
    torch.testing.assert_close(values[:there], scores.sort(descending=True)[0][:there])
    assert torch.equal(scores[indices[:there]], values[:there])
    assert (values[there:] == -torch.inf).all() and (indices[there:] == 0).all()


@pytest.mark.parametrize('number', [0, 1, 200])
def test_keep_apart(number):
    boxes = torch.rand(number, 4) * 100
    boxes[:, 2:] += boxes[:, :2]
    scores, groups = torch.rand(number), torch.randint(0, 3, (number,))
    limit = torch.tensor([200.0, 200, 200, 200])
    expected = torchvision.ops.batched_nms(boxes, scores, groups, 0.5)
    assert torch.equal(keep_apart(boxes, scores, groups, limit, 0.5), expected)


def test_decoder():
    coder = DeltaXYWHBBoxCoder(target_means=[0.1, 0, 0, 0], target_stds=[0.1, 0.1, 0.2, 0.2])
    boxes = torch.rand(500, 4) * 200
    boxes[:, 2:] += boxes[:, :2]
    deltas = torch.randn(500, 4) * 20  # also beyond the largest ratio
    expected = coder.decode(boxes, deltas, max_shape=(300, 400))
    assert (expected == 0).any() and (expected == 400).any()
    limit = torch.tensor([400.0, 300, 400, 300])
    torch.testing.assert_close(BoxDecoder(coder)(boxes, deltas, limit), expected)
    for other in (DeltaXYWHBBoxCoder(add_ctr_clamp=True), DeltaXYWHBBoxCoder(clip_border=False)):
        with pytest.raises(ConfigError, match='bbox_coder'):
            BoxDecoder(other)


@pytest.mark.parametrize('sampling_ratio', [0, 2])
@pytest.mark.parametrize('aligned', [True, False])
def test_roi_align(sampling_ratio, aligned):
    layer = MMCVRoIAlign(7, spatial_scale=0.25, sampling_ratio=sampling_ratio, aligned=aligned)
    x = torch.rand(1, 5, 40, 50)
    boxes = torch.tensor([[3.0, 5, 90, 80], [0, 0, 10, 10], [150, 100, 199, 159]])
    expected = layer(x, torch.cat([torch.zeros(3, 1), boxes], dim=1))
    torch.testing.assert_close(roi_align(layer, x, boxes), expected, rtol=1e-4, atol=1e-5)
