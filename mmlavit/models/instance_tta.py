"""Test-time augmentation for instance segmentation; mmdet's own merges boxes only.

Needs mmdet, so nothing in the package imports this module: configs name it by its full path,
``tta_model=dict(type='mmlavit.models.instance_tta.InstanceTTAModel', ...)``.
"""

from __future__ import annotations

import torch
from mmcv.ops import batched_nms
from mmdet.models.test_time_augs import DetTTAModel
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor

FLIP_DIMS = {'horizontal': (-1,), 'vertical': (-2,), 'diagonal': (-2, -1)}


class InstanceTTAModel(DetTTAModel):
    """Merge boxes of all views by NMS; every box that stays keeps the mask of its own view.

    Args:
        tta_cfg (dict): ``dict(nms=..., max_per_img=...)``, as for mmdet's ``DetTTAModel``.
        module (nn.Module or dict): The detector, or its config.
    """

    def merge_preds(self, data_samples_list: list[list[DetDataSample]]) -> list[DetDataSample]:
        """Merge the views of each image.

        Args:
            data_samples_list (list[list[DetDataSample]]): For each image its views; predictions are in the original
                image's pixels, still flipped where the view was.

        Returns:
            list[DetDataSample]: For each image its first view's sample with the merged ``pred_instances``.
        """
        return [self._merge_views(views) for views in data_samples_list]

    def _merge_views(self, views: list[DetDataSample]) -> DetDataSample:
        predictions = [view.pred_instances for view in views]
        boxes, scores = self.merge_aug_bboxes(
            [p.bboxes for p in predictions], [p.scores for p in predictions], [view.metainfo for view in views]
        )
        labels = torch.cat([p.labels for p in predictions])
        masks = torch.cat([_unflip(view) for view in views])
        if len(boxes):
            detections, keep = batched_nms(boxes, scores, labels, self.tta_cfg.nms)
            top = slice(self.tta_cfg.max_per_img)
            boxes, scores = detections[top, :4], detections[top, 4]
            labels, masks = labels[keep[top]], masks[keep[top]]
        merged = views[0]
        merged.pred_instances = InstanceData(bboxes=boxes, scores=scores, labels=labels, masks=masks)
        return merged


def _unflip(view: DetDataSample) -> Tensor:
    """Masks (n, H, W) of a view as they lie in the original image."""
    masks = view.pred_instances.masks
    return masks.flip(FLIP_DIMS[view.flip_direction]) if view.flip else masks
