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


def predict(boxes: list[list[float]], scores: list[float], flip: bool) -> DetDataSample:
    """A view's predictions: masks fill their boxes; everything is mirrored if ``flip``."""
    boxes = torch.tensor(boxes, dtype=torch.float).view(-1, 4)
    masks = torch.zeros(len(boxes), HEIGHT, WIDTH, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
        mask[y1:y2, x1:x2] = True
    if flip:
        masks = masks.flip(-1)
        boxes = torch.stack([WIDTH - boxes[:, 2], boxes[:, 1], WIDTH - boxes[:, 0], boxes[:, 3]], 1)
    meta = dict(ori_shape=(HEIGHT, WIDTH), flip=flip, flip_direction='horizontal' if flip else None)
    sample = DetDataSample(metainfo=meta)
    sample.pred_instances = InstanceData(
        bboxes=boxes,
        scores=torch.tensor(scores, dtype=torch.float),
        labels=torch.zeros(len(boxes), dtype=torch.long),
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


def test_mirrored_masks_come_back():
    plain = predict([[2, 3, 20, 30]], [0.5], flip=False)
    mirrored = predict([[2, 3, 20, 30], [30, 5, 55, 38]], [0.9, 0.7], flip=True)
    merged = merge([plain, mirrored])
    assert merged.bboxes.tolist() == [[2, 3, 20, 30], [30, 5, 55, 38]]
    torch.testing.assert_close(merged.scores, torch.tensor([0.9, 0.7]))
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
