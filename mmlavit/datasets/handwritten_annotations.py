"""What is known about a handwritten scene, in the formats of the toolboxes."""

from __future__ import annotations

import numpy as np

from mmlavit_serve.results import run_lengths

from .handwritten_drawing import NUM_CLASSES, Scene

CLASSES = tuple(str(digit) for digit in range(NUM_CLASSES))


def coco_image(scene: Scene, index: int, name: str) -> dict:
    """Make the entry of scene number ``index``, stored as file ``name``, in COCO's list of images.

    ``background`` is not COCO's: the photograph and the (x, y, width, height) cut out of it.
    """
    height, width = scene.image.shape[:2]
    background = dict(photo=scene.photo, crop=scene.crop)
    return dict(id=index, file_name=name, width=width, height=height, background=background)


def coco_annotations(scene: Scene, index: int, first_id: int) -> list[dict]:
    """List the digits of scene number ``index`` as in COCO's list of annotations.

    ``scan`` is not COCO's: the index of the digit's image in scikit-learn's ``load_digits``.
    """
    return [
        dict(
            id=first_id + i,
            image_id=index,
            category_id=instance.label + 1,
            bbox=_bounding_box(instance.mask),
            area=int(instance.mask.sum()),
            iscrowd=0,
            segmentation=run_lengths(instance.mask),
            scan=instance.scan,
        )
        for i, instance in enumerate(scene.instances)
    ]


def coco_categories() -> list[dict]:
    """List COCO's categories: id 1 + k for digit k, as in the semantic maps."""
    return [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]


def semantic_map(scene: Scene) -> np.ndarray:
    """Draw the (H, W) uint8 class map of a scene: 0 background, 1 + k where digit k shows."""
    classes = np.zeros(scene.image.shape[:2], dtype=np.uint8)
    for instance in scene.instances:
        classes[instance.mask] = instance.label + 1
    return classes


def _bounding_box(mask: np.ndarray) -> list[int]:
    """Find the tight box [x, y, width, height] around the true pixels of ``mask`` (H, W) bool."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
