"""Training images of a classifier, decoded once and cropped on the model's device (ours).

Small images are quick to train on, and a GPU then waits for the processes that decode and crop them one by one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, MODELS
from mmpretrain.datasets import CustomDataset
from mmpretrain.models import ClsDataPreprocessor
from mmpretrain.structures import DataSample
from torch import Tensor
from torch.utils.data import get_worker_info

from mmlavit.errors import ConfigError, DataError
from mmlavit.utils.local_files import write_file

_THREADS = 16
_ASPECTS = 3 / 4, 4 / 3  # smallest and largest ratio of width to height of a crop


@DATASETS.register_module()
class DecodedImages(CustomDataset):
    """A dataset that gives batches, as they come out of a memory of decoded images.

    The pipeline runs once for each image, so nothing in it should be random; crops and flips are drawn by
    :class:`CroppingDataPreprocessor`. The images are kept in a file that trainings map into their memory.
    Needs ``num_workers=0`` and ``collate_fn=dict(type='mmlavit.datasets.decoded.keep_batch')``.

    Args:
        cache (str): Folder for that file; it is made if it does not exist. The file's name depends on the list of
            images and on the pipeline, not on what the images contain. Of several processes, each decodes all images
            if the file is not there.
        pipeline (Sequence[dict]): Transforms that load an image.
        targets (Sequence[dict]): Transforms that need no image, such as ``AddTeacherScores``.
        **kwargs (Any): As for mmpretrain's ``CustomDataset``.

    Raises:
        ConfigError: If it is used in a worker process.
        DataError: If an image cannot be used, or the pipeline gives images of several sizes.
    """

    def __init__(
        self,
        *,
        cache: str,
        pipeline: Sequence[Mapping[str, Any]],
        targets: Sequence[Mapping[str, Any]] = (),
        **kwargs: Any,
    ) -> None:
        self.cache = cache
        self.recipe = [sorted(transform.items()) for transform in pipeline]
        self.target_pipeline = Compose(list(targets))
        self.images: np.ndarray | None = None  # (N, H, W, 3), BGR
        self.paths: list[str] = []
        self.labels: np.ndarray | None = None  # class scores (N, classes), or numbers of classes (N,)
        super().__init__(pipeline=pipeline, **kwargs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Give a batch of one."""
        return DecodedImages.__getitems__(self, [index])

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """Give a batch.

        Args:
            indices (Sequence[int]): Numbers of B images.

        Returns:
            dict: ``inputs``, bytes of shape (B, 3, H, W), and ``data_samples``.
        """
        if get_worker_info() is not None:
            raise ConfigError('DecodedImages needs num_workers=0: each worker would decode all images')
        if self.images is None:
            self._load()
        inputs = torch.from_numpy(self.images[indices]).permute(0, 3, 1, 2)
        samples = []
        for index, target in zip(indices, torch.from_numpy(self.labels[indices]), strict=True):
            sample = DataSample(metainfo=dict(sample_idx=int(index), img_path=self.paths[index]))
            name, value = ('gt_score', target) if target.dim() else ('gt_label', target[None])
            sample.set_field(value, name, dtype=Tensor)
            samples.append(sample)
        return dict(inputs=inputs, data_samples=samples)

    def _load(self) -> None:
        """Map the images into memory, decoded if they are not there yet, and collect the targets."""
        entries = [self.get_data_info(i) for i in range(len(self))]
        samples = [self.target_pipeline(dict(entry)) for entry in entries]
        name = 'gt_score' if 'gt_score' in samples[0] else 'gt_label'
        self.labels = np.stack([np.asarray(sample[name]) for sample in samples])
        self.paths = [entry['img_path'] for entry in entries]
        key = json.dumps([self.paths, self.recipe], default=_name_class)
        file = os.path.join(self.cache, f'{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy')
        if not os.path.isfile(file):
            with ThreadPoolExecutor(_THREADS) as pool:
                images = list(pool.map(self._decode, entries))
            sizes = {image.shape for image in images}
            if len(sizes) > 1:
                raise DataError(f'DecodedImages needs images of one size, got {sorted(sizes)[:3]}; add a Resize')
            buffer = BytesIO()
            np.save(buffer, np.stack(images))
            write_file(file, buffer.getbuffer())
        self.images = np.load(file, mmap_mode='r')

    def _decode(self, entry: Mapping[str, Any]) -> np.ndarray:
        """Load an image."""
        sample = self.pipeline(dict(entry))
        if sample is None:
            raise DataError(f'{entry["img_path"]}: DecodedImages cannot leave out images')
        return sample['img']


def _name_class(kind: Any) -> str:
    """Name a transform that a config has as a class."""
    if not isinstance(kind, type):
        raise ConfigError(f'DecodedImages needs transforms of plain values, got {kind!r}')
    return f'{kind.__module__}.{kind.__qualname__}'


def keep_batch(batch: dict[str, Any]) -> dict[str, Any]:
    """Collate nothing, since :class:`DecodedImages` gives batches."""
    return batch


@MODELS.register_module()
class CroppingDataPreprocessor(ClsDataPreprocessor):
    """mmpretrain's data preprocessor, which in training crops, resizes and mirrors images of a batch on its device.

    Args:
        crop_size (int or Sequence[int]): Side of the crops after resizing, which is bilinear; of several, one is drawn
            for each batch (each process draws its own).
        crop_ratio_range (Sequence[float]): Share of the image's area in a crop.
        **kwargs (Any): As for ``ClsDataPreprocessor``.
    """

    def __init__(self, crop_size: int | Sequence[int], crop_ratio_range: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.crop_sizes = [crop_size] if isinstance(crop_size, int) else list(crop_size)
        self.crop_ratio_range = tuple(crop_ratio_range)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Prepare a batch.

        Args:
            data (dict): ``inputs``, and ``data_samples``.
            training (bool): Whether to crop.

        Returns:
            dict: The same, for the model.
        """
        if training:
            inputs = self.cast_data(data['inputs']).float()
            several = len(self.crop_sizes) > 1  # of one, no random number is drawn
            size = self.crop_sizes[torch.randint(len(self.crop_sizes), ()) if several else 0]
            data = {**data, 'inputs': random_resized_crop(inputs, size, self.crop_ratio_range)}
        return super().forward(data, training)


def random_resized_crop(images: Tensor, size: int, areas: Sequence[float]) -> Tensor:
    """Cut a random part out of each image, resize it, and mirror it with a probability of 1/2.

    The ratio of its width to its height is 3:4 to 4:3. As mmpretrain's ``RandomResizedCrop``, but a part that is larger
    than the image is clipped to it, where mmpretrain draws another.

    Args:
        images (Tensor): Images of shape (B, C, H, W).
        size (int): Side of the result.
        areas (Sequence[float]): Smallest and largest share of the image's area.

    Returns:
        Tensor: Crops of shape (B, C, size, size).
    """
    area, aspect, across, down, mirror = torch.rand(5, images.shape[0], device=images.device)
    area = areas[0] + (areas[1] - areas[0]) * area
    low, high = np.log(_ASPECTS)
    aspect = torch.exp(low + (high - low) * aspect) * images.shape[2] / images.shape[3]
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)  # (B,), shares of sides
    theta = images.new_zeros(images.shape[0], 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = torch.where(mirror < 0.5, -width, width), height
    theta[:, 0, 2], theta[:, 1, 2] = (2 * across - 1) * (1 - width), (2 * down - 1) * (1 - height)
    # A data preprocessor runs under autocast, in which half precision would move pixels by up to half their size.
    with torch.autocast(images.device.type, enabled=False):
        grid = F.affine_grid(theta, [images.shape[0], images.shape[1], size, size], align_corners=False)
        return F.grid_sample(images, grid, padding_mode='border', align_corners=False)
