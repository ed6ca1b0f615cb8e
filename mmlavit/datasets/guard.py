"""Datasets that name the file when an image or annotation cannot be used, or leave it out and write that down."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from mmengine.dataset import Compose

from mmlavit.errors import DataError
from mmlavit.utils.data_paths import is_remote

from .check.coco import covers
from .check.images import (
    LARGEST,
    find_fault,
    find_file_fault,
    find_label_fault,
    find_map_fault,
    find_missing,
    has_16_bits,
    is_cut_off,
    read_values,
)
from .check.maps import MAP_LOADERS, is_panoptic, maps_have_its_classes

_ADVICE = 'tools/check_data.py CONFIG of mmlavit finds all such files'
_IN_A_ROW = 100
_DARK = 16  # what is left of 12 bits where the upper 8 of 16 are kept


class GuardedPipeline(Compose):
    """The transforms of a dataset, which name the file that they fail on, and refuse what would be learned wrongly.

    Refused are files that OpenCV reads without a complaint: cut-off JPEGs, whose rest its older versions fill with
    gray, 12 bits in a 16-bit file, of which nothing remains, images that an EXIF tag turns away from their annotations,
    label maps of another size than their image, labels that no class has, and run-length masks that are damaged.
    The transforms themselves, their order and their random numbers are what they were.

    Args:
        pipeline (Compose): The transforms.
        labels (int, optional): Number of classes; None: not known.
        ignore_index (int): Label of pixels that belong to no class.
        panoptic (bool): Whether label maps are panoptic files, with the numbers of segments.
        skip_file (str, optional): Leave such images out, as long as the dataset may draw another in its place, and
            write their names into this file. None: raise an error.
    """

    def __init__(
        self,
        pipeline: Compose,
        labels: int | None = None,
        ignore_index: int = 255,
        panoptic: bool = False,
        skip_file: str | None = None,
    ) -> None:
        super().__init__(None)
        self.transforms = pipeline.transforms
        self.labels = labels
        self.ignore_index = ignore_index
        self.panoptic = panoptic
        self.skip_file = skip_file
        self._in_a_row = 0

    def __call__(self, data: dict) -> dict | None:
        """Transform.

        Args:
            data (dict): What the dataset says about an image.

        Returns:
            dict, optional: The sample; None: another has to be drawn.

        Raises:
            DataError: If the image or its annotation cannot be used; the message names the file.
        """
        path = data.get('img_path')
        if not isinstance(path, (str, os.PathLike)):
            return super().__call__(data)
        try:
            self._check_label(path, data)
            sample = self._transform(path, data)
        except DataError as error:
            if self.skip_file is None:
                raise
            self._in_a_row += 1
            if self._in_a_row >= _IN_A_ROW:
                raise DataError(f'{_IN_A_ROW} images in a row had to be left out; the last: {error}') from error
            with open(self.skip_file, 'a') as file:
                file.write(f'{error}\n')
            return None
        self._in_a_row = 0
        return sample

    def _transform(self, path: str, data: dict) -> dict | None:
        """Run the transforms, and look at image and label map once they are loaded."""
        height, width = data.get('height'), data.get('width')
        loaded = None  # the image's height and width before anything has changed them
        for transform in self.transforms:
            self._check_runs(path, data, transform, loaded)
            try:
                data = transform(data)
            except Exception as error:
                raise _explain(path, data, transform, error) from error
            if data is None:
                return None
            image = data.get('img')
            if loaded is None and isinstance(image, np.ndarray):
                loaded = image.shape[:2]
                self._check_image(path, image, height, width)
            if type(transform).__name__ in MAP_LOADERS and isinstance(data.get('gt_seg_map'), np.ndarray):
                self._check_map(data['seg_map_path'], data['gt_seg_map'], loaded, image)
        return data

    def _check_image(self, path: str, image: np.ndarray, height: int | None, width: int | None) -> None:
        if not os.path.isfile(path):
            return  # from elsewhere than a local disk
        large = image.shape[0] * image.shape[1] > LARGEST
        fault = find_fault(path, decode=False) if large or is_cut_off(path) else ''
        dark = not fault and image.dtype == np.uint8 and has_16_bits(path) and image.max(initial=0) <= _DARK
        if dark and read_values(path).max() > 0:
            fault = 'has 16 bits in each channel, and nothing but black is left of it in 8: convert it to 8 bits'
        if not fault and image.shape[:2] == (width, height) != (height, width):
            fault = (
                f'is {height}x{width} as it is loaded, but {width}x{height} by its annotation (turned by an EXIF tag?)'
                ': save it as it is to be seen, or correct width and height'
            )
        if fault:
            raise DataError(f'{path} {fault}; {_ADVICE}')

    def _check_runs(self, path: str, data: dict, transform: Any, loaded: tuple[int, int] | None) -> None:
        """Look at run-length masks before they are decoded, which would fill up or cut off what is damaged."""
        decodes = getattr(transform, 'with_mask', False) and type(transform).__name__ == 'LoadAnnotations'
        if not decodes or loaded is None:
            return
        objects = [one for one in data.get('instances') or () if isinstance(one.get('mask'), Mapping)]
        if not transform.poly2mask:
            if not all(one.get('ignore_flag') for one in objects):
                raise DataError(
                    f'{path} has run-length masks, and LoadAnnotations(poly2mask=False) leaves such objects out: '
                    'remove poly2mask=False'
                )
        elif not all(covers(one['mask'], *loaded) for one in objects):
            raise DataError(f'{path} has a run-length mask that is damaged or of another size: correct the annotations')

    def _check_map(self, path: str, labels: np.ndarray, loaded: tuple[int, int] | None, image: Any) -> None:
        # In tests, mmseg loads the map after it has resized the image, and the map has the size of before. In training,
        # an image may be resized to that of its map.
        sizes = [loaded, image.shape[:2]] if isinstance(image, np.ndarray) else []
        fault = ''
        if labels.ndim != 2 or (sizes and labels.shape not in sizes):
            fault = find_map_fault(path, loaded, None, self.panoptic)
            if not fault and labels.ndim != 2 and not self.panoptic:
                fault = (
                    'has a palette, and is loaded as colours: set imdecode_backend="pillow" in LoadAnnotations, or '
                    'convert it to gray'
                )
        elif self.labels is not None:
            if labels.dtype == np.uint8 and os.path.isfile(path) and has_16_bits(path):
                values = read_values(path)
                # mmseg keeps the lower 8 bits; those of 65535 are 255, which is ignored.
                if np.issubdtype(values.dtype, np.integer) and ((values > 255) & (values & 255 != 255)).any():
                    raise DataError(f'{path} has labels above 255, of which mmseg keeps 8 bits: convert it to 8 bits')
            ignored = {self.ignore_index, 255}
            if ((labels >= self.labels) & ~np.isin(labels, [*ignored])).any():
                fault = find_label_fault(labels, {*range(self.labels), *ignored})
        if fault:
            raise DataError(f'{path} {fault}; {_ADVICE}')

    def _check_label(self, path: str, data: dict) -> None:
        label = data.get('gt_label')
        # Of several tasks, each has its own classes.
        labels = [] if label is None or isinstance(label, Mapping) else np.ravel(label).tolist()
        if self.labels is not None and any(not 0 <= value < self.labels for value in labels):
            raise DataError(
                f'{path} has the label {label}, but the model has classes 0 to {self.labels - 1}; {_ADVICE}'
            )
        boxes = [one.get('bbox') for one in data.get('instances') or () if one.get('bbox') is not None]
        if boxes and not np.isfinite(boxes).all():
            raise DataError(f'{path} has a box with a number that is not finite: correct the annotations; {_ADVICE}')


def guard_dataset(dataset: Any, classes: int | None, skip_file: str | None) -> None:
    """Put a :class:`GuardedPipeline` into a dataset, and into those in it.

    Args:
        dataset (Dataset): A dataset of a toolbox, or a wrapper.
        classes (int, optional): Number of classes of the model; None: those that each dataset says it has.
        skip_file (str, optional): As of :class:`GuardedPipeline`; not for validation and test, whose images all count.
    """
    from mmcv.transforms import Compose as ComposeOfMmcv  # not above: the backbone alone needs no mmcv

    for leaf in find_leaves(dataset):
        known = (getattr(leaf, 'metainfo', None) or {}).get('classes')
        labels = classes if known is None else len(known)
        for name in ('pipeline', 'target_pipeline'):  # the second is of DecodedImages
            pipeline = getattr(leaf, name, None)
            # The second kind is what mmdet's PipelineSwitchHook sets.
            if isinstance(pipeline, (Compose, ComposeOfMmcv)) and not isinstance(pipeline, GuardedPipeline):
                guarded = GuardedPipeline(
                    pipeline,
                    labels=labels if maps_have_its_classes(leaf) else None,
                    ignore_index=getattr(leaf, 'ignore_index', 255),
                    panoptic=is_panoptic(leaf),
                    skip_file=skip_file if name == 'pipeline' and not getattr(leaf, 'test_mode', False) else None,
                )
                setattr(leaf, name, guarded)


def find_leaves(dataset: Any) -> Iterator[Any]:
    """Yield the datasets inside of wrappers such as ``RepeatDataset``; one that is no wrapper itself."""
    while (sliced := getattr(dataset, '__dict__', {}).get('_dataset')) is not None:  # mmengine's num_batch_per_epoch
        dataset = sliced
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if inner == [None]:
        yield dataset
        return
    for one in inner:
        yield from find_leaves(one)


def _explain(path: str, data: dict, transform: Any, error: Exception) -> Exception:
    """Say which file a transform has failed on: in one line where the file is at fault, else with the trace."""
    if isinstance(error, DataError):
        return error
    name, fault = path, ''
    if 'img' not in data and not _is_elsewhere(path, transform):
        ours = type(transform).__name__ == 'LoadImageFromFile'  # others may read formats that Pillow does not know
        fault = (find_file_fault if ours else find_missing)(path)
    maps = data.get('seg_map_path')
    if not fault and 'gt_seg_map' not in data and maps is not None and not _is_elsewhere(maps, transform):
        ours = type(transform).__name__ in MAP_LOADERS
        name, fault = maps, (find_file_fault if ours else find_missing)(maps)
    if not fault and isinstance(error, KeyError) and error.args == ('mask',):
        name, fault = path, 'has an object without a mask: add its segmentation to the annotations, or remove it'
    if fault:
        return DataError(f'{name} {fault}; {_ADVICE}')
    return RuntimeError(f'{path}: {type(transform).__name__} failed on it ({type(error).__name__}: {error})')


def _is_elsewhere(path: str | os.PathLike, transform: Any) -> bool:
    """Tell whether a file is in a storage such as s3://, where only its transforms look at it."""
    return '://' in os.fspath(path) or is_remote(getattr(transform, '__dict__', {}))
