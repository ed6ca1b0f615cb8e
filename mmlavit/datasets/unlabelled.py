"""Images without labels, and the part of a training pipeline that does without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from mmlavit.errors import UserError
from mmlavit.utils.config_types import type_name
from mmlavit_serve.predictor import find_images

_BY_BOXES = (
    'CachedMixUp',
    'CachedMosaic',
    'CopyPaste',
    'MinIoURandomCrop',
    'MixUp',
    'Mosaic',
    'RandomAffine',
    'RandomCenterCropPad',
    'RandomShift',
)


@DATASETS.register_module()
class UnlabelledImages(BaseDataset):
    """All images in a folder and the folders in it, for the transforms of any toolbox.

    Args:
        data_root (str): The folder.
        pipeline (Sequence[dict]): Transforms, from loading the image to packing it.
        metainfo (dict, optional): Names and colours of classes, for the checkpoints of what is trained.

    Raises:
        UserError: If there is no image.
    """

    def __init__(
        self, data_root: str, pipeline: Sequence[Mapping[str, Any]], metainfo: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(data_root=data_root, pipeline=pipeline, metainfo=metainfo)

    def load_data_list(self) -> list[dict]:
        """List the images in the order of their names."""
        images = map(str, find_images(Path(self.data_root)))
        # Lists of fields that carry labels: none, but the transforms ask.
        return [dict(img_path=path, img_id=i, seg_fields=[], bbox_fields=[]) for i, path in enumerate(images)]


def remove_labels(pipeline: Sequence[Mapping[str, Any]]) -> list[dict]:
    """Give what is left of a training pipeline if images have no labels.

    Args:
        pipeline (Sequence[Mapping]): Transforms of mmdet, mmseg or mmpretrain.

    Returns:
        list[dict]: Without those that load or filter annotations, and without the share of one class that a crop may
        have.

    Raises:
        UserError: If a transform needs boxes, as those that mix images do.
    """
    left = []
    for transform in pipeline:
        name = type_name(transform)
        if name in _BY_BOXES:
            raise UserError(f'{name} in the training pipeline works by the boxes of images; leave it out to distil')
        if name.endswith('Annotations'):
            continue
        kept = {key: value for key, value in transform.items() if key != 'cat_max_ratio'}
        if 'transforms' in transform:
            inner = _as_list(transform['transforms'])
            # As many choices as before, since each may have its probability.
            choices = [remove_labels(_as_list(choice)) for choice in inner]
            kept['transforms'] = choices if name == 'RandomChoice' else sum(choices, [])
        left.append(kept)
    return left


def _as_list(transforms: Mapping[str, Any] | Sequence[Any]) -> Sequence[Any]:
    """Give transforms as a list, where one may stand for itself."""
    return [transforms] if isinstance(transforms, Mapping) else transforms
