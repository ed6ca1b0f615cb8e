"""The images of a dataset as its pipeline gives them, with their annotations drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from torch import Tensor

from mmlavit.datasets.check.config import build_dataset
from mmlavit.datasets.guard import find_leaves, guard_dataset
from mmlavit.errors import UserError
from mmlavit.utils.data_paths import require_data
from mmlavit.utils.spread import spread_evenly
from mmlavit.utils.toolbox import find_scope, load_toolbox

from .drawing import build_visualizer, draw_annotations

# Images are enlarged by whole factors up to this longer side, so that labels on small ones can be read.
_SIDE = 480


class Annotated(NamedTuple):
    """A drawn image.

    Args:
        name (str): Its place in the dataset and its file's name, without ending.
        image (np.ndarray): (H, W, 3), uint8, BGR.
        size (tuple[int, int]): Height and width before it was enlarged.
    """

    name: str
    image: np.ndarray
    size: tuple[int, int]


def _has_original_annotations(dataset: Any) -> bool:
    """Tell whether annotations are of the image before it was resized, as in tests, which measure at that size."""
    names = [type(step).__name__ for step in getattr(getattr(dataset, 'pipeline', None), 'transforms', ())]
    loading = next((i for i, name in enumerate(names) if name.endswith('Annotations')), 0)
    return any('Resize' in name for name in names[:loading])


def browse(cfg: Config, split: Literal['train', 'val', 'test'], number: int) -> Iterator[Annotated]:
    """Draw images of a dataset, spread evenly over it.

    Args:
        cfg (Config): A config of any of the three toolboxes.
        split (str): Whose images: 'train', 'val' or 'test'.
        number (int): How many at most.

    Yields:
        Annotated: One image after another.

    Raises:
        UserError: If the config has no such data, or it is not there.
        EnvironmentProblem: If the toolbox cannot work as installed.
    """
    scope = find_scope(cfg)
    if cfg.get(f'{split}_dataloader') is None:
        raise UserError(f'the config has no {split}_dataloader')
    require_data(cfg, [split])
    load_toolbox(scope)
    init_default_scope(scope)
    dataset = build_dataset(cfg[f'{split}_dataloader'].dataset, cfg.get('model') or {})
    guard_dataset(dataset, None, None)
    visualizer = build_visualizer(scope, dataset.metainfo)
    original = _has_original_annotations(next(find_leaves(dataset)))
    # Folders of classes come one after the other.
    for index in spread_evenly(len(dataset), number):
        for branch, inputs, sample in _take_apart(dataset[index]):
            drawn, size = _draw(visualizer, inputs, sample, original)
            stem = Path(sample.get('img_path') or '').stem
            yield Annotated('_'.join(filter(None, (f'{index:06d}', stem, branch))), drawn, size)


def _take_apart(item: Mapping[str, Any]) -> Iterator[tuple[str, Tensor, BaseDataElement]]:
    """Yield what an item has for each branch of mmdet's ``MultiBranch``; most have one, without a name."""
    inputs, sample = item['inputs'], item['data_samples']
    if isinstance(sample, list):  # of a dataset that gives batches, a batch of one
        (inputs,), (sample,) = inputs, sample
    branches = sample.keys() if isinstance(sample, dict) else ['']
    for branch in branches:
        one = (inputs[branch], sample[branch]) if branch else (inputs, sample)
        if one[1] is not None:
            yield branch, *one


def find_inner_size(sample: BaseDataElement, size: tuple[int, int]) -> tuple[int, int]:
    """Find how much of what a pipeline gives is the image, without padding, which is right and below.

    Args:
        sample (BaseDataElement): What the pipeline says of it: ``img_shape``, and where it was resized ``ori_shape``
            and ``scale_factor``, of width and height.
        size (tuple[int, int]): Height and width of the whole.

    Returns:
        tuple[int, int]: Height and width.
    """
    shape = tuple(sample.get('img_shape', size)[:2])
    if 'scale_factor' not in sample or 'ori_shape' not in sample:
        return shape
    scaled = (round(side * scale) for side, scale in zip(sample.ori_shape[:2], sample.scale_factor[1::-1], strict=True))
    # A transform that pads changes img_shape, too.
    return tuple(min(pair) for pair in zip(shape, scaled, strict=True))


def _draw(
    visualizer: Visualizer, inputs: Tensor, sample: BaseDataElement, original: bool
) -> tuple[np.ndarray, tuple[int, int]]:
    """Draw an image; give its size before it was enlarged, too."""
    image = inputs.numpy().transpose(1, 2, 0)  # BGR: only the data preprocessor changes that
    if original and 'ori_shape' in sample:
        height, width = sample.ori_shape[:2]
        inner = find_inner_size(sample, image.shape[:2])
        image = mmcv.imresize(image[: inner[0], : inner[1]], (width, height))
        image = image.reshape(height, width, -1)  # of a single channel, too
    size = image.shape[:2]
    drawn = draw_annotations(visualizer, image, sample, max(1, _SIDE // max(size)))
    return drawn, size
