"""Steps of a detector's post-processing in the form that an export needs: nothing is asked of numbers of boxes.

All are plain tensor code that also runs in eager mode. ONNX has an operator for every one of them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
import torchvision
from mmcv.ops import RoIAlign
from mmdet.models.task_modules import DeltaXYWHBBoxCoder
from torch import Tensor, nn

from mmlavit.errors import ConfigError

_MOST = 2**31  # more objects than any image has


def highest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the highest of some scores, without asking how many there are.

    Args:
        scores (Tensor): Scores of shape (N,), in [0, 1] or before a sigmoid.
        count (int): How many are wanted.

    Returns:
        tuple[Tensor, Tensor]: The highest in falling order and their indices, (count,) each. Where N is less than
        count, the rest is minus infinity at the index 0.
    """
    filler = scores.new_full((count,), -torch.inf)
    values, indices = torch.cat([scores, filler]).topk(count)
    return values, torch.where(values == -torch.inf, 0, indices)


def indices_of(mask: Tensor) -> Tensor:
    """Find where a mask is true: (number of them, dimensions of the mask)."""
    indices = mask.nonzero()
    # Otherwise the sums of several such numbers leave the range of 64 bits, in what an export notes of its sizes.
    torch._check(indices.shape[0] <= _MOST)
    return indices


def are_larger(boxes: Tensor, smallest: float) -> Tensor:
    """Whether both sides of boxes (N, 4) are larger than so many pixels: (N,)."""
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    return (width > smallest) & (height > smallest)


def keep_apart(boxes: Tensor, scores: Tensor, groups: Tensor, limit: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression within groups, such as classes.

    Args:
        boxes (Tensor): Boxes (x1, y1, x2, y2) of shape (N, 4), inside of the image.
        scores (Tensor): Scores of shape (N,).
        groups (Tensor): Number of the group of each, (N,).
        limit (Tensor): Largest coordinates (x, y, x, y) of shape (4,).
        iou_threshold (float): Intersection over union above which the lower score goes.

    Returns:
        Tensor: Indices of the boxes that stay, highest score first.
    """
    # Groups are moved so far apart that no two overlap.
    offset = groups.to(boxes.dtype) * (limit.max() + 1)
    kept = torchvision.ops.nms(boxes + offset[:, None], scores, iou_threshold)
    torch._check(kept.shape[0] <= _MOST)
    return kept


class BoxDecoder(nn.Module):
    """Boxes from the deltas that a head predicts, moved into the image.

    Args:
        coder (nn.Module): DeltaXYWHBBoxCoder of mmdet.
    """

    _MAX_LOG_RATIO = math.log(1000 / 16)  # that of mmdet

    def __init__(self, coder: object) -> None:
        super().__init__()
        if type(coder) is not DeltaXYWHBBoxCoder or coder.add_ctr_clamp or not coder.clip_border:
            raise ConfigError(
                f'bbox_coder={type(coder).__name__} cannot be exported; expected a DeltaXYWHBBoxCoder with clip_border'
            )
        self.register_buffer('means', torch.tensor(coder.means))
        self.register_buffer('stds', torch.tensor(coder.stds))

    def forward(self, boxes: Tensor, deltas: Tensor, limit: Tensor) -> Tensor:
        """Decode.

        Args:
            boxes (Tensor): Anchors or regions (x1, y1, x2, y2) of shape (N, 4).
            deltas (Tensor): What is predicted for each, (N, 4).
            limit (Tensor): Largest coordinates (x, y, x, y) of the image, (4,).

        Returns:
            Tensor: Boxes (N, 4).
        """
        shift, log_scale = (deltas * self.stds + self.means).split(2, dim=1)
        first, last = boxes.split(2, dim=1)
        size = last - first
        centre = (first + last) * 0.5 + size * shift
        half = size * log_scale.clamp(-self._MAX_LOG_RATIO, self._MAX_LOG_RATIO).exp() * 0.5
        return torch.minimum(torch.cat([centre - half, centre + half], dim=1).clamp(min=0), limit)


def check_roi_align(layer: nn.Module) -> None:
    """Raise a ConfigError unless a layer is RoIAlign as ONNX has it."""
    if not isinstance(layer, RoIAlign) or layer.pool_mode != 'avg':
        raise ConfigError(f'{layer} cannot be exported; expected roi_layer=dict(type="RoIAlign", pool_mode="avg")')


def roi_align(layer: RoIAlign, x: Tensor, rois: Tensor) -> Tensor:
    """RoIAlign of mmcv: maps (1, C, H, W) and boxes (R, 4) to (R, C, h, w)."""
    rois = F.pad(rois, (1, 0))  # the number of the image, 0
    size, scale, ratio = layer.output_size, layer.spatial_scale, layer.sampling_ratio
    return torchvision.ops.roi_align(x, rois, size, scale, ratio, layer.aligned)
