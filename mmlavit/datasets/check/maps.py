"""What label maps of a data set mean."""

from __future__ import annotations

from typing import Any


def maps_have_its_classes(dataset: Any) -> bool:
    """Tell whether labels in the maps of a data set are numbers of its classes.

    Maps beside the boxes of COCO are of stuff and things, for a semantic head; in panoptic data sets they are not.

    Args:
        dataset (Dataset): A data set of a toolbox, no wrapper.

    Returns:
        bool: True where they are.
    """
    return not hasattr(dataset, 'COCOAPI') or 'thing_classes' in (getattr(dataset, 'metainfo', None) or {})
