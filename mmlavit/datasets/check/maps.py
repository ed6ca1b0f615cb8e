"""What images and label maps of a dataset mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from mmlavit.utils.config_types import type_name

# Transforms that load label maps as images.
MAP_LOADERS = ('LoadAnnotations', 'LoadPanopticAnnotations')
_COLOURS = ('color', 'grayscale', 'color_ignore_orientation', 'grayscale_ignore_orientation')


class Loading(NamedTuple):
    """What a pipeline makes of files.

    Args:
        depth (str): '8 bits': mmcv decodes images as colours or gray. 'any': it leaves their depth as it is. 'unknown':
            something else loads them, such as GDAL.
        turns (bool): Whether images are turned as an EXIF tag says.
        maps (bool): Whether label maps are loaded as images; otherwise their format is not known.
    """

    depth: Literal['8 bits', 'any', 'unknown'] = '8 bits'
    turns: bool = True
    maps: bool = True


def describe_loading(pipeline: Sequence[Mapping[str, Any]]) -> Loading:
    """Tell what a pipeline makes of the files of images and label maps.

    Args:
        pipeline (Sequence[Mapping]): Transforms.

    Returns:
        Loading: What is known; what most pipelines do where nothing is said.
    """
    found = Loading()
    for step in pipeline:
        name = type_name(step)
        if name == 'LoadImageFromFile' and step.get('imdecode_backend') == 'tifffile':  # bands of any number and depth
            found = found._replace(depth='unknown', turns=False)
        elif name == 'LoadImageFromFile':
            kind = step.get('color_type', 'color')
            found = found._replace(depth='8 bits' if kind in _COLOURS else 'any', turns=kind in ('color', 'grayscale'))
        elif name.startswith('Load') and 'Annotation' in name:
            found = found._replace(maps=name in MAP_LOADERS)
        elif name.startswith('Load') and 'Image' in name:
            found = found._replace(depth='unknown', turns=False)
    return found


def is_panoptic(dataset: Any) -> bool:
    """Tell whether the maps of a dataset, no wrapper, have the numbers of segments, as COCO's panoptic files."""
    return 'thing_classes' in (getattr(dataset, 'metainfo', None) or {})


def maps_have_its_classes(dataset: Any) -> bool:
    """Tell whether labels in the maps of a dataset, once they are loaded, are numbers of its classes.

    Maps beside the boxes of COCO are of stuff and things, for a semantic head. The files of panoptic datasets have
    numbers of segments, of which transforms make numbers of classes.

    Args:
        dataset (Dataset): A dataset of a toolbox, no wrapper.

    Returns:
        bool: True where they are.
    """
    return not hasattr(dataset, 'COCOAPI') or is_panoptic(dataset)


def find_zero_label_fault(dataset: Any, pipeline: Sequence[Any]) -> str:
    """Say whether a dataset and the transform that loads its maps disagree on what label 0 means.

    Args:
        dataset (Dataset): A dataset of mmseg; others have no such setting.
        pipeline (Sequence): Its transforms, or their configs.

    Returns:
        str: The fault; '' if there is none.
    """
    ours = getattr(dataset, 'reduce_zero_label', None)
    for step in pipeline:
        is_config = isinstance(step, Mapping)
        name = type_name(step) if is_config else type(step).__name__
        theirs = step.get('reduce_zero_label') if is_config else getattr(step, 'reduce_zero_label', None)
        if name == 'LoadAnnotations' and None not in (ours, theirs) and bool(ours) != bool(theirs):
            return (
                f'reduce_zero_label is {theirs} in LoadAnnotations, but {ours} in {type(dataset).__name__}: set both '
                'alike (True where label 0 is no class, and is to be ignored)'
            )
    return ''
