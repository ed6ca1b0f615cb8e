"""What images and label maps of a data set mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mmlavit.utils.config_types import type_name

_COLOURS = ('color', 'grayscale', 'color_ignore_orientation', 'grayscale_ignore_orientation')


def loaded_depth(pipeline: Sequence[Mapping[str, Any]]) -> Literal['8 bits', 'any', 'unknown']:
    """Tell what a pipeline makes of image files.

    Args:
        pipeline (Sequence[Mapping]): Transforms.

    Returns:
        str: '8 bits': mmcv decodes them as colours or gray. 'any': it leaves their depth as it is. 'unknown': something
        else loads them, such as GDAL.
    """
    for step in pipeline:
        name = type_name(step)
        if name == 'LoadImageFromFile':
            return '8 bits' if step.get('color_type', 'color') in _COLOURS else 'any'
        if name.startswith('Load') and 'Image' in name:
            return 'unknown'
    return '8 bits'


def is_panoptic(dataset: Any) -> bool:
    """Tell whether the maps of a data set, no wrapper, have the numbers of segments, as COCO's panoptic files."""
    return 'thing_classes' in (getattr(dataset, 'metainfo', None) or {})


def maps_have_its_classes(dataset: Any) -> bool:
    """Tell whether labels in the maps of a data set, once they are loaded, are numbers of its classes.

    Maps beside the boxes of COCO are of stuff and things, for a semantic head. The files of panoptic data sets have
    numbers of segments, of which transforms make numbers of classes.

    Args:
        dataset (Dataset): A data set of a toolbox, no wrapper.

    Returns:
        bool: True where they are.
    """
    return not hasattr(dataset, 'COCOAPI') or is_panoptic(dataset)
