"""What was found, described, as JSON and drawn."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from pycocotools import mask as coco_mask

from mmlavit_serve import Classification, Detections, Segmentation
from mmlavit_serve.results import paste_masks

SHAPE = (97, 120)
IMAGE = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), np.uint8)


def make_detections():
    masks = np.zeros((2, *SHAPE), bool)
    masks[:, 10:60, 20:50] = True
    boxes = np.float32([[20, 10, 50, 60], [20, 10, 50, 60]])
    return Detections(SHAPE, tuple('0123456789'), boxes, np.float32([0.9, 0.6]), np.array([7, 1]), masks)


def test_detections():
    result = make_detections()
    assert result.describe() == '2 objects: 7 0.90, 1 0.60' and len(result) == 2
    record = json.loads(result.to_json())['objects']
    assert record == result.to_dict()['objects']
    decoded = [coco_mask.decode(coco_mask.frPyObjects(entry.pop('mask'), *SHAPE)) for entry in record]
    box = [20.0, 10.0, 50.0, 60.0]
    assert record == [
        {'class': '7', 'label': 7, 'score': 0.9, 'box': box},
        {'class': '1', 'label': 1, 'score': 0.6, 'box': box},
    ]
    assert all(np.array_equal(mask, result.masks[0]) for mask in decoded)


def test_more_classes_than_names():
    result = Classification((4, 4), ('a',), np.float32([0.1, 0.9]))
    assert result.describe() == '1 0.90, a 0.10'


def test_palette_as_an_array():
    result = Segmentation((4, 4), None, np.zeros((4, 4), np.uint8), np.array([[1, 2, 3]]))
    assert result.draw(np.zeros((4, 4, 3), np.uint8)).shape == (4, 4, 3)


def test_drawn_detections():
    before = IMAGE.copy()
    drawn = make_detections().draw(IMAGE, enlarge=3)
    assert np.array_equal(IMAGE, before)
    assert drawn.shape == (97 * 3, 120 * 3, 3) and drawn.dtype == np.uint8
    smooth = cv2.resize(IMAGE, (120 * 3, 97 * 3), interpolation=cv2.INTER_CUBIC)
    changed = np.abs(drawn.astype(int) - smooth).max(axis=2) > 30
    assert changed[35:175, 65:145].mean() > 0.5  # inside the box
    assert changed[:, 200:].mean() < 0.01  # right of it


def test_classification():
    result = Classification(SHAPE, ('a', 'b', 'c'), np.float32([0.2, 0.7, 0.1]))
    assert result.describe() == 'b 0.70, a 0.20, c 0.10'
    assert result.to_dict()['classes'][0] == {'class': 'b', 'label': 1, 'score': 0.7}
    assert Classification(SHAPE, None, result.scores).describe() == '1 0.70, 0 0.20, 2 0.10'
    assert (result.draw(IMAGE) != IMAGE).any()


def test_segmentation():
    labels = np.zeros(SHAPE, np.int64)
    labels[:, 60:] = 2
    labels[0, 0] = 1
    result = Segmentation(SHAPE, ('a', 'b', 'c'), labels, [[0, 0, 0], [0, 255, 0], [255, 0, 0]])
    assert result.describe() == 'c 50.0%, a 50.0%'
    record = result.to_dict()['classes']
    assert [entry['class'] for entry in record] == ['c', 'a', 'b']
    decoded = [coco_mask.decode(coco_mask.frPyObjects(entry['mask'], *SHAPE)) for entry in record]
    assert all(np.array_equal(mask, labels == entry['label']) for mask, entry in zip(decoded, record))
    drawn = result.draw(IMAGE).astype(int) - IMAGE
    assert drawn[40:, 60:, 2].mean() > 30 > drawn[40:, :60, 2].mean()  # red, in BGR


@pytest.mark.parametrize('size', [28, 14])
def test_pasted_masks(size):
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(20, size, size, generator=generator)
    boxes = torch.rand(20, 4, generator=generator) * 60 - 5
    boxes[:, 2:] = boxes[:, :2] + 3 + torch.rand(20, 2, generator=generator) * 70
    boxes[0] = torch.tensor([0.0, 0, 120, 97])
    found = paste_masks(masks.numpy(), boxes.numpy(), SHAPE, 0.5)
    expected = torch.zeros(20, *SHAPE)
    for i in range(20):
        pasted, place = _do_paste_mask(masks[i][None, None], boxes[i][None], *SHAPE, skip_empty=True)
        expected[(i, *place)] = pasted[0]
    undecided = (expected - 0.5).abs() < 1e-5
    assert ((torch.from_numpy(found) == (expected >= 0.5)) | undecided).all()
    assert found.any(axis=(1, 2)).all()
