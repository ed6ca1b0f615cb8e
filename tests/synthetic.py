"""Samples and miniature datasets of the structure that each toolbox expects, without real data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor


def make_batch(scope: str, num_classes: int, sizes: Sequence[tuple[int, int]]) -> dict:
    """Make what a data loader of a toolbox yields for training.

    Args:
        scope: 'mmdet' (boxes and masks), 'mmseg' or 'mmpretrain'.
        num_classes: Labels are drawn from ``range(num_classes)``.
        sizes: Height and width of each image. mmpretrain stacks images, so they must agree there.

    Returns:
        ``dict(inputs=..., data_samples=...)``: BGR uint8 images (3, H, W) and packed samples.
    """
    rng = np.random.default_rng(0)
    images = [torch.from_numpy(rng.integers(0, 256, (3, *size), np.uint8)) for size in sizes]
    make = {'mmdet': _det_sample, 'mmseg': _seg_sample, 'mmpretrain': _cls_sample}[scope]
    samples = [make(num_classes, size, index, rng) for index, size in enumerate(sizes)]
    inputs = torch.stack(images) if scope == 'mmpretrain' else images
    return dict(inputs=inputs, data_samples=samples)


def _det_sample(num_classes: int, size: tuple[int, int], index: int, rng: np.random.Generator):
    """Two boxes whose masks are the ellipses inside."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    height, width = size
    boxes = np.float32([(5, 8, 45, 60), (width - 50, height - 40, width - 4, height - 3)])
    masks = np.stack([_ellipse(size, box) for box in boxes])
    sample = DetDataSample(metainfo=_image_meta(size, index))
    sample.gt_instances = InstanceData(
        bboxes=HorizontalBoxes(torch.from_numpy(boxes)),
        labels=torch.from_numpy(rng.integers(0, num_classes, 2)),
        masks=BitmapMasks(masks, height, width),
    )
    sample.ignored_instances = InstanceData(
        bboxes=HorizontalBoxes(torch.zeros(0, 4)),
        labels=torch.zeros(0, dtype=torch.long),
        masks=BitmapMasks(np.zeros((0, *size), np.uint8), height, width),
    )
    return sample


def _seg_sample(num_classes: int, size: tuple[int, int], index: int, rng: np.random.Generator):
    """A label map of blocks; some are ignored in ADE20K, none in the handwritten scenes."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    ignored = [255] if num_classes == 150 else []
    blocks = rng.choice([*range(num_classes), *ignored], (size[0] // 16 + 1, size[1] // 16 + 1))
    labels = blocks.repeat(16, 0).repeat(16, 1)[: size[0], : size[1]]
    sample = SegDataSample(metainfo=_image_meta(size, index))
    sample.gt_sem_seg = PixelData(data=torch.from_numpy(labels)[None])
    return sample


def _cls_sample(num_classes: int, size: tuple[int, int], index: int, rng: np.random.Generator):
    from mmpretrain.structures import DataSample

    return DataSample(metainfo=_image_meta(size, index)).set_gt_label(int(rng.integers(num_classes)))


def _image_meta(size: tuple[int, int], index: int) -> dict:
    return dict(
        img_id=index,
        img_path=f'{index}.jpg',
        ori_shape=size,
        img_shape=size,
        scale_factor=(1.0, 1.0),
        flip=False,
        flip_direction=None,
    )


def flipped_view(batch: dict) -> dict:
    """The same batch as a mirrored view of test-time augmentation."""
    samples = [sample.clone() for sample in batch['data_samples']]
    for sample in samples:
        sample.set_metainfo(dict(flip=True, flip_direction='horizontal'))
    inputs = batch['inputs']
    mirrored = inputs.flip(-1) if isinstance(inputs, Tensor) else [i.flip(-1) for i in inputs]
    return dict(inputs=mirrored, data_samples=samples)


def write_coco(root: Path) -> None:
    """Write COCO 2017 in miniature: two pictures a split, one object each, in ``root/data/coco``."""
    from mmdet.datasets import CocoDataset

    rng = np.random.default_rng(0)
    coco = root / 'data/coco'
    names = CocoDataset.METAINFO['classes']
    categories = [dict(id=index + 1, name=name) for index, name in enumerate(names)]
    (coco / 'annotations').mkdir(parents=True)
    for split in ('train2017', 'val2017'):
        images, annotations = [], []
        for index, size in enumerate([(97, 161), (130, 75)]):
            name = f'{index:012d}.jpg'
            _write_picture(coco / split / name, size, rng)
            images.append(dict(id=index, file_name=name, height=size[0], width=size[1]))
            annotations.append(
                dict(
                    id=index + 1,
                    image_id=index,
                    category_id=1,
                    bbox=[10, 20, 50, 60],
                    area=3000,
                    iscrowd=0,
                    segmentation=[[10, 20, 60, 20, 60, 80, 10, 80]],
                )
            )
        content = dict(images=images, annotations=annotations, categories=categories)
        (coco / f'annotations/instances_{split}.json').write_text(json.dumps(content))


def write_ade20k(root: Path) -> None:
    """Write ADE20K in miniature: two pictures a split, in ``root/data/ade``."""
    rng = np.random.default_rng(0)
    ade = root / 'data/ade/ADEChallengeData2016'
    for split in ('training', 'validation'):
        for index, size in enumerate([(97, 161), (130, 75)]):
            _write_picture(ade / f'images/{split}/{index}.jpg', size, rng)
            labels = rng.integers(0, 151, size, np.uint8)  # 0: not one of the 150 classes
            _write_image(ade / f'annotations/{split}/{index}.png', labels)


def write_imagenet(root: Path) -> None:
    """Write ImageNet-1k in miniature: 1,000 folders a split, of which two hold a picture."""
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for label in range(1000):
            (root / f'data/imagenet/{split}/n{label:08d}').mkdir(parents=True)
        for label in (0, 999):
            path = root / f'data/imagenet/{split}/n{label:08d}/0.JPEG'
            _write_picture(path, (300, 261), rng)


def write_handwritten(root: Path) -> None:
    """Generate a few handwritten scenes and crops in ``root/data/handwritten``."""
    from mmlavit.datasets.handwritten import HandwrittenConfig, generate

    config = HandwrittenConfig(train_scenes=8, val_scenes=3, train_crops=64, val_crops=10)
    generate(root / 'data/handwritten', config, progress=False)


def _write_picture(path: Path, size: tuple[int, int], rng: np.random.Generator) -> None:
    _write_image(path, rng.integers(0, 256, (*size, 3), np.uint8))


def _write_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix.replace('JPEG', 'jpg'), image)[1].tobytes())


def _ellipse(size: tuple[int, int], box: np.ndarray) -> np.ndarray:
    """(H, W) uint8: the ellipse inside a box (x1, y1, x2, y2)."""
    y, x = np.mgrid[: size[0], : size[1]]
    center, radius = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    inside = ((x - center[0]) / radius[0]) ** 2 + ((y - center[1]) / radius[1]) ** 2 <= 1
    return inside.astype(np.uint8)
