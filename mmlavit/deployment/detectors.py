"""Detectors: RetinaNet and its like in one stage, Mask R-CNN and Cascade Mask R-CNN in two."""

from __future__ import annotations

import torch
from mmdet.models import CascadeRoIHead, RetinaHead, RPNHead, SingleStageDetector, StandardRoIHead, TwoStageDetector
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from torch import Tensor, nn

from mmlavit.errors import ConfigError
from mmlavit.utils.config_types import type_name

from .boxes import BoxDecoder, are_larger, check_roi_align, highest, indices_of, keep_apart, roi_align


def iou_threshold_of(cfg: dict, what: str) -> float:
    """Read the threshold of a plain non-maximum suppression.

    Raises:
        ConfigError: For any other kind.
    """
    nms = cfg.get('nms') or {}
    if type_name(nms) != 'nms' or set(nms) != {'type', 'iou_threshold'} or not cfg.get('max_per_img', 0) > 0:
        raise ConfigError(
            f'{what} has nms={dict(nms)} and max_per_img={cfg.get("max_per_img")}, which cannot be exported; '
            'expected nms=dict(type="nms", iou_threshold=...), without more arguments, and max_per_img above 0'
        )
    return nms['iou_threshold']


class AnchorHead(nn.Module):
    """Boxes of a dense head on anchors: those of the highest scores on each level.

    Args:
        head (nn.Module): RetinaHead or RPNHead of mmdet.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.count = head.test_cfg.get('nms_pre', -1)
        if type(head) not in (RetinaHead, RPNHead) or not head.use_sigmoid_cls or self.count < 1:
            raise ConfigError(
                f'{type(head).__name__} with nms_pre={self.count} cannot be exported; expected a RetinaHead or RPNHead '
                'with sigmoid scores and nms_pre above 0'
            )
        self.decode = BoxDecoder(head.bbox_coder)

    def forward(self, features: tuple[Tensor, ...], limit: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Find candidates, ``nms_pre`` on each level.

        Args:
            features (tuple[Tensor]): Maps (1, C, h, w) of the levels.
            limit (Tensor): Largest coordinates (x, y, x, y) of the image.

        Returns:
            tuple[Tensor, Tensor, Tensor, Tensor]: Boxes (N, 4), their scores (N,), 0 where a level has fewer, their
            classes (N,) and their levels (N,).
        """
        head = self.head
        logits, deltas = head(features)
        sizes = [level.shape[-2:] for level in logits]
        anchors = head.prior_generator.grid_priors(sizes, dtype=limit.dtype, device=limit.device)
        found = []
        for level in range(len(logits)):
            # Sigmoid keeps the order, so it is left for those that are chosen.
            scores, index = highest(logits[level][0].permute(1, 2, 0).reshape(-1), self.count)
            place = index // head.cls_out_channels
            moved = deltas[level][0].permute(1, 2, 0).reshape(-1, 4)[place]
            boxes = self.decode(anchors[level][place], moved, limit)
            levels = torch.full_like(index, level)
            found.append((boxes, scores.sigmoid(), index % head.cls_out_channels, levels))
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


class OneStage(nn.Module):
    """RetinaNet from maps to boxes.

    Args:
        model (SingleStageDetector): Model of mmdet.
    """

    outputs = ('boxes', 'scores', 'labels')

    def __init__(self, model: SingleStageDetector) -> None:
        super().__init__()
        if getattr(model, 'bbox_head', None) is None:
            raise ConfigError(f'{type(model).__name__} has no bbox_head, so it cannot be exported')
        if type(model.bbox_head) is not RetinaHead:  # an RPN alone keeps its levels apart, not its classes
            raise ConfigError(f'{type(model.bbox_head).__name__} cannot be exported alone; expected a RetinaHead')
        self.head = AnchorHead(model.bbox_head)
        self.score_thr = model.test_cfg.get('score_thr', 0)
        self.iou_threshold = iou_threshold_of(model.test_cfg, 'test_cfg')
        self.max_per_img = model.test_cfg['max_per_img']
        self.smallest = model.test_cfg.get('min_bbox_size', -1)
        if self.smallest > 0:
            raise ConfigError(
                f'test_cfg has min_bbox_size={self.smallest}, in pixels of the image before it is resized, which an '
                'exported model does not know; expected 0 or less'
            )

    def forward(self, features: tuple[Tensor, ...], limit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect on maps (1, C, h, w): boxes (N, 4), scores (N,) and labels (N,), highest score first."""
        boxes, scores, labels, _ = self.head(features, limit)
        wanted = scores > self.score_thr
        if self.smallest >= 0:
            wanted = wanted & are_larger(boxes, self.smallest)
        chosen = indices_of(wanted)[:, 0]
        boxes, scores, labels = boxes[chosen], scores[chosen], labels[chosen]
        kept = keep_apart(boxes, scores, labels, limit, self.iou_threshold)[: self.max_per_img]
        return boxes[kept], scores[kept], labels[kept]


class RoIExtractor(nn.Module):
    """Maps of regions, each from the level that fits its size.

    Args:
        extractor (nn.Module): SingleRoIExtractor of mmdet.
    """

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        if type(extractor) is not SingleRoIExtractor:
            raise ConfigError(f'{type(extractor).__name__} cannot be exported; expected a SingleRoIExtractor')
        for layer in extractor.roi_layers:
            check_roi_align(layer)
        self.extractor = extractor

    def forward(self, features: tuple[Tensor, ...], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Cut regions out.

        Args:
            features (tuple[Tensor]): Maps (1, C, h, w) of the levels.
            boxes (Tensor): Regions of shape (N, 4).

        Returns:
            tuple[Tensor, Tensor]: Maps (N, C, s, s), those of the first level first, and their order: the index of
            the region of each, (N,).
        """
        layers = self.extractor.roi_layers
        size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        level = torch.floor(torch.log2(size / self.extractor.finest_scale + 1e-6)).clamp(0, len(layers) - 1)
        order = [indices_of(level == i)[:, 0] for i in range(len(layers))]
        maps = [roi_align(*each) for each in zip(layers, features, (boxes[index] for index in order), strict=False)]
        return torch.cat(maps), torch.cat(order)


class TwoStages(nn.Module):
    """Mask R-CNN or Cascade Mask R-CNN from maps to boxes and masks.

    Args:
        model (TwoStageDetector): Model of mmdet.
    """

    def __init__(self, model: TwoStageDetector) -> None:
        super().__init__()
        if not model.with_rpn:
            raise ConfigError(f'{type(model).__name__} has no rpn_head: what needs given proposals cannot be exported')
        heads = model.roi_head
        if type(heads) not in (StandardRoIHead, CascadeRoIHead) or heads.with_shared_head:
            raise ConfigError(
                f'roi_head={type(heads).__name__} cannot be exported; expected a StandardRoIHead or CascadeRoIHead '
                'without shared_head'
            )
        if custom := [type(head.loss_cls).__name__ for head in _listed(heads.bbox_head) if head.custom_activation]:
            raise ConfigError(
                f'loss_cls={custom[0]} has scores of its own kind, which cannot be exported; expected softmax, as of '
                'CrossEntropyLoss'
            )
        self.rpn = AnchorHead(model.rpn_head)
        self.rpn_cfg, self.cfg = model.test_cfg.rpn, model.test_cfg.rcnn
        self.rpn_iou_threshold = iou_threshold_of(self.rpn_cfg, 'test_cfg.rpn')
        smallest = self.rpn_cfg.get('min_bbox_size', -1)
        if smallest > 0:
            raise ConfigError(
                f'test_cfg.rpn has min_bbox_size={smallest}, which may leave an image no proposal; expected 0 or less'
            )
        self.iou_threshold = iou_threshold_of(self.cfg, 'test_cfg.rcnn')
        self.bbox_extractors = nn.ModuleList(map(RoIExtractor, _listed(heads.bbox_roi_extractor)))
        self.bbox_heads = nn.ModuleList(_listed(heads.bbox_head))
        self.decoders = nn.ModuleList(BoxDecoder(head.bbox_coder) for head in self.bbox_heads)
        self.with_mask = heads.with_mask
        self.outputs = ('boxes', 'scores', 'labels')
        if self.with_mask:
            self.outputs += ('masks',)
            # The heads of a cascade look at the same boxes, each through an extractor of the same kind: one serves all.
            extractors = _listed(heads.mask_roi_extractor)
            if len({f'{extractor.finest_scale} {extractor.roi_layers}' for extractor in extractors}) > 1:
                raise ConfigError('mask_roi_extractor differs between stages, which cannot be exported; use one')
            self.mask_extractor = RoIExtractor(extractors[0])
            self.mask_heads = nn.ModuleList(_listed(heads.mask_head))

    def forward(self, features: tuple[Tensor, ...], limit: Tensor) -> tuple[Tensor, ...]:
        """Detect on maps (1, C, h, w).

        Args:
            features (tuple[Tensor]): Maps of the levels.
            limit (Tensor): Largest coordinates (x, y, x, y) of the image.

        Returns:
            tuple[Tensor]: Boxes (N, 4), scores (N,) and labels (N,), highest score first; where the model has masks,
            these as probabilities inside of the boxes, (N, s, s).
        """
        boxes, logits, deltas = self.refine(features, self.propose(features, limit), limit)
        scores = logits.softmax(dim=-1)[:, :-1]
        row, labels = indices_of(scores > self.cfg['score_thr']).unbind(1)
        scores = scores[row, labels]
        boxes = self.move(-1, boxes[row], labels, deltas[row], limit)
        kept = keep_apart(boxes, scores, labels, limit, self.iou_threshold)[: self.cfg['max_per_img']]
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        if not self.with_mask:
            return boxes, scores, labels
        return boxes, scores, labels, self.masks(features, boxes, labels)

    def propose(self, features: tuple[Tensor, ...], limit: Tensor) -> Tensor:
        """Find regions (N, 4) that may be objects."""
        boxes, scores, _, levels = self.rpn(features, limit)
        if self.rpn_cfg.get('min_bbox_size', -1) >= 0:
            chosen = indices_of(are_larger(boxes, 0))[:, 0]
            boxes, scores, levels = boxes[chosen], scores[chosen], levels[chosen]
        kept = keep_apart(boxes, scores, levels, limit, self.rpn_iou_threshold)[: self.rpn_cfg['max_per_img']]
        return boxes[kept]

    def refine(self, features: tuple[Tensor, ...], boxes: Tensor, limit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the box heads, of a cascade one after the other: regions, mean scores (N, classes + 1), last deltas."""
        total = 0
        last = len(self.bbox_heads) - 1
        for stage, (extractor, head) in enumerate(zip(self.bbox_extractors, self.bbox_heads, strict=True)):
            maps, order = extractor(features, boxes)
            boxes = boxes[order]
            if stage:
                total = total[order]
            torch._check(maps.numel() != 0)  # there is always a proposal, and norms ask for it
            logits, deltas = head(maps)
            total = total + logits
            if stage < last:
                labels = logits[:, :-1].argmax(dim=1)
                boxes = self.move(stage, boxes, labels, deltas, limit)
        return boxes, total / (last + 1), deltas

    def move(self, stage: int, boxes: Tensor, labels: Tensor, deltas: Tensor, limit: Tensor) -> Tensor:
        """Move boxes (N, 4) as a stage says for their classes (N,); deltas of shape (N, 4) or (N, classes * 4)."""
        head = self.bbox_heads[stage]
        if not head.reg_class_agnostic:
            deltas = deltas.unflatten(1, (head.num_classes, 4))
            deltas = deltas.gather(1, labels[:, None, None].expand(-1, 1, 4))[:, 0]
        return self.decoders[stage](boxes, deltas, limit)

    def masks(self, features: tuple[Tensor, ...], boxes: Tensor, labels: Tensor) -> Tensor:
        """Run the mask heads on boxes (N, 4) with classes (N,): the mean of their probabilities, (N, s, s)."""
        maps, order = self.mask_extractor(features, boxes)
        total = 0
        for head in self.mask_heads:
            logits = head(maps)
            if not head.class_agnostic:
                index = labels[order][:, None, None, None].expand(-1, 1, *logits.shape[2:])
                logits = logits.gather(1, index)
            total = total + logits[:, 0].sigmoid()
        return (total / len(self.mask_heads))[order.argsort()]


def _listed(module: nn.Module) -> list[nn.Module]:
    """Modules of a list, or the only one; cascades have lists."""
    return list(module) if isinstance(module, nn.ModuleList) else [module]
