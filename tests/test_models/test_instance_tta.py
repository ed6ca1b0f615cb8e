"""Merging of instance masks over views."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from mmengine.structures import InstanceData

pytest.importorskip('mmdet')

from mmdet.structures import DetDataSample  # noqa: E402

from mmlavit.models.instance_tta import InstanceTTAModel  # noqa: E402

HEIGHT, WIDTH = 40, 60


class Detector(BaseModel):
    """What predictions come from does not matter here."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        raise AssertionError


def predict(
    boxes: list[list[float]],
    scores: list[float],
    flip: bool,
    labels: list[int] | None = None,
    direction: str = 'horizontal',
) -> DetDataSample:
    """A view's predictions: masks fill their boxes; everything is mirrored if ``flip``."""
    boxes = torch.tensor(boxes, dtype=torch.float).view(-1, 4)
    masks = torch.zeros(len(boxes), HEIGHT, WIDTH, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
        mask[y1:y2, x1:x2] = True
    if flip and direction != 'vertical':
        masks = masks.flip(-1)
        boxes = torch.stack([WIDTH - boxes[:, 2], boxes[:, 1], WIDTH - boxes[:, 0], boxes[:, 3]], 1)
    if flip and direction != 'horizontal':
        masks = masks.flip(-2)
        boxes = torch.stack([boxes[:, 0], HEIGHT - boxes[:, 3], boxes[:, 2], HEIGHT - boxes[:, 1]], 1)
    meta = dict(ori_shape=(HEIGHT, WIDTH), flip=flip, flip_direction=direction if flip else None)
    sample = DetDataSample(metainfo=meta)
    sample.pred_instances = InstanceData(
        bboxes=boxes,
        scores=torch.tensor(scores, dtype=torch.float),
        labels=torch.tensor(labels or [0] * len(boxes), dtype=torch.long),
        masks=masks,
    )
    return sample


def merge(views: list[DetDataSample], max_per_img: int = 10) -> InstanceData:
    cfg = ConfigDict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=max_per_img)
    model = InstanceTTAModel(tta_cfg=cfg, module=Detector())
    return model.merge_preds([views])[0].pred_instances


def assert_masks_fill_boxes(instances: InstanceData) -> None:
    for mask, (x1, y1, x2, y2) in zip(instances.masks, instances.bboxes.int().tolist()):
        assert mask.sum() == mask[y1:y2, x1:x2].sum() == (y2 - y1) * (x2 - x1)


@pytest.mark.parametrize('direction', ['horizontal', 'vertical', 'diagonal'])
def test_mirrored_masks_come_back(direction):
    plain = predict([[2, 3, 20, 30]], [0.5], flip=False)
    mirrored = predict([[2, 3, 20, 30], [30, 5, 55, 38]], [0.9, 0.7], flip=True, direction=direction)
    merged = merge([plain, mirrored])
    assert merged.bboxes.tolist() == [[2, 3, 20, 30], [30, 5, 55, 38]]
    torch.testing.assert_close(merged.scores, torch.tensor([0.9, 0.7]))
    assert_masks_fill_boxes(merged)


def test_classes_are_apart():
    """A box suppresses those of its own class only, and each keeps its label and mask."""
    plain = predict([[2, 3, 20, 30], [30, 5, 55, 38]], [0.5, 0.6], flip=False, labels=[1, 2])
    mirrored = predict([[2, 3, 20, 30], [3, 3, 20, 30]], [0.9, 0.7], flip=True, labels=[0, 1])
    merged = merge([plain, mirrored])
    assert list(zip(merged.labels.tolist(), merged.bboxes.tolist())) == [
        (0, [2, 3, 20, 30]),
        (1, [3, 3, 20, 30]),
        (2, [30, 5, 55, 38]),
    ]
    assert_masks_fill_boxes(merged)


def test_keeps_the_best():
    plain = predict([[2, 3, 20, 30]], [0.5], flip=False)
    mirrored = predict([[30, 5, 55, 38]], [0.7], flip=True)
    merged = merge([plain, mirrored], max_per_img=1)
    assert merged.bboxes.tolist() == [[30, 5, 55, 38]]
    assert_masks_fill_boxes(merged)


def test_nothing_found():
    merged = merge([predict([], [], flip=False), predict([], [], flip=True)])
    assert len(merged) == 0
    assert merged.masks.shape == (0, HEIGHT, WIDTH)
