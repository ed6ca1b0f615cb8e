"""Trained models, and the images to look at them with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import TRANSFORMS, DefaultScope
from torch import Tensor, nn

from mmlavit.apis.inference import require_device
from mmlavit.datasets.check.config import build_dataset
from mmlavit.datasets.unlabelled import UnlabelledImages, remove_labels
from mmlavit.deployment.pipeline import find_test_dataset
from mmlavit.engine.teacher import build_teacher
from mmlavit.errors import UserError, first_few
from mmlavit.models.resample import ceil_div
from mmlavit.utils.config_files import load_config
from mmlavit.utils.config_types import find_class, model_config
from mmlavit.utils.data_paths import missing_data
from mmlavit.utils.spread import spread_evenly
from mmlavit.utils.toolbox import find_scope, load_toolbox
from mmlavit.visualization.browse import find_inner_size
from mmlavit_serve.predictor import find_images, read_image

# Whose transforms change no pixel by labels in a test.
_TOOLBOXES = ('mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'mmseg')


class Trained(NamedTuple):
    """A model with its weights, frozen, in eval mode.

    Args:
        name (str): What to call it.
        cfg (Config): Its config.
        checkpoint (Path): Where its weights are from.
        model (nn.Module): Classifier, detector or segmentor.
    """

    name: str
    cfg: Config
    checkpoint: Path
    model: nn.Module


class Picture(NamedTuple):
    """An image as the test of a config gives it to its model.

    Args:
        path (Path): Its file.
        pixels (np.ndarray): (h, w, 3), uint8, RGB, before the model pads and normalises it.
        inputs (Tensor): What the model gets, (1, 3, H, W), on its device; padding is right and below.
        data (dict): What ``test_step`` of the model takes.
        inner (tuple[int, int]): Height and width of the image in the pixels; what is right and below of it is padding
            of the config's own.
        whole (tuple[int, int]): Height and width of what a prediction is made on: those of the inputs, unless these are
            one window of several.
    """

    path: Path
    pixels: np.ndarray
    inputs: Tensor
    data: dict[str, Any]
    inner: tuple[int, int]
    whole: tuple[int, int]

    def frame(self, multiple: int = 1) -> np.ndarray:
        """Give the pixels with the padding of the inputs, in grey.

        Args:
            multiple (int): Pad on to a multiple of so many pixels.

        Returns:
            np.ndarray: (H, W, 3), uint8, RGB.
        """
        height, width = (ceil_div(side, multiple) * multiple for side in self.inputs.shape[-2:])
        frame = np.full((height, width, 3), 127, np.uint8)
        frame[: self.pixels.shape[0], : self.pixels.shape[1]] = self.pixels
        return frame


def load_trained(
    config: str, checkpoint: str, device: str = 'cpu', options: Mapping[str, Any] | None = None
) -> Trained:
    """Build a model with its weights.

    Args:
        config (str): A file, or ``TOOLBOX::FILE`` of an installed toolbox.
        checkpoint (str): Its weights.
        device (str): Such as 'cpu' or 'cuda:0'.
        options (Mapping, optional): Dotted keys of the config and their new values.

    Returns:
        Trained: The model.

    Raises:
        UserError: If a file is missing or does not fit, or the config is for none of the toolboxes.
        EnvironmentProblem: If the toolbox cannot work as installed.
    """
    cfg = load_config(config, options)
    scope = find_scope(cfg)
    load_toolbox(scope)
    require_device(device)
    model, _ = build_teacher(model_config(cfg), scope, checkpoint)
    if not hasattr(model, 'backbone'):
        raise UserError(f'{type(model).__name__} has no backbone of its own; name the config of the model in it')
    wrong = [name for name, tensor in model.named_parameters() if not tensor.isfinite().all()]
    if wrong:
        raise UserError(
            f'{checkpoint} has numbers that are not finite ({first_few(wrong)}): take an earlier checkpoint'
        )
    return Trained(Path(config).stem, cfg, Path(checkpoint), model.to(device))


def choose_pictures(cfg: Config, folder: Path | None, count: int) -> list[Path]:
    """Choose images to look at a model with.

    Args:
        cfg (Config): Config of the model.
        folder (Path, optional): Folder of images, subfolders included, or one image; None: those of the config's test.
        count (int): At most so many, evenly spread.

    Returns:
        list[Path]: Their files.

    Raises:
        UserError: If there are none, or the config's are no files.
    """
    if folder is not None:
        found = find_images(folder)
        return [found[i] for i in spread_evenly(len(found), count)]
    if missing := missing_data(cfg, ['test']):
        raise UserError(f"the images of the config's test are missing ({missing[0]}); name others with --images")
    dataset = _build_test(cfg)
    if not len(dataset):
        raise UserError("the config's test has no images; name others with --images")
    paths = [dataset.get_data_info(i).get('img_path') for i in spread_evenly(len(dataset), count)]
    if not all(isinstance(path, (str, os.PathLike)) for path in paths):
        raise UserError(f"the images of the config's test ({type(dataset).__name__}) are no files; name --images")
    return [Path(path) for path in paths]


def _build_test(cfg: Config) -> Any:
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return build_dataset(find_test_dataset(cfg), cfg.model)


def _may_draw_labels(cfg: Config) -> bool:
    """Tell whether transforms of the test may draw on images what labels say, as those of a user's own may."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        kinds = [find_class(step, TRANSFORMS) for step in find_test_dataset(cfg).pipeline]
    return not all(isinstance(kind, type) and kind.__module__.split('.')[0] in _TOOLBOXES for kind in kinds)


def read_pictures(trained: Trained, paths: Sequence[Path]) -> Iterator[Picture]:
    """Read images as the test of a config gives them to its model.

    Args:
        trained (Trained): The model.
        paths (Sequence[Path]): Files of images.

    Yields:
        Picture: One after the other. Of a segmentor that is tested by sliding windows, the window in the middle.

    Raises:
        UserError: If a file is no image.
    """
    cfg, model = trained.cfg, trained.model
    test = _build_test(cfg) if _may_draw_labels(cfg) and not missing_data(cfg, ['test']) else None
    own = {Path(test.get_data_info(i).get('img_path') or ''): i for i in range(len(test))} if test else {}
    for path in paths:
        read_image(path)  # says in one line what is wrong with it
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            if path in own:
                item = test[own[path]]
            else:
                item = UnlabelledImages(str(path), remove_labels(find_test_dataset(cfg).pipeline))[0]
        data = pseudo_collate([item])
        # BGR: only the data preprocessor changes that.
        pixels = data['inputs'][0].permute(1, 2, 0).numpy()[..., ::-1]
        inputs = model.data_preprocessor(deepcopy(data), False)['inputs']
        inner = find_inner_size(data['data_samples'][0], pixels.shape[:2])
        whole = tuple(inputs.shape[-2:])
        if window := _find_window(model, pixels.shape[:2]):
            pixels, inputs = pixels[window], inputs[(..., *window)]
            inner = pixels.shape[:2]
        yield Picture(path, np.ascontiguousarray(pixels), inputs, data, inner, whole)


def _find_window(model: nn.Module, size: Sequence[int]) -> tuple[slice, slice] | None:
    """Find the window in the middle of an image, if a segmentor is tested by windows that are smaller."""
    test_cfg = getattr(model, 'test_cfg', None) or {}
    if test_cfg.get('mode') != 'slide':
        return None
    starts = [max(0, side - window) // 2 for side, window in zip(size, test_cfg['crop_size'], strict=True)]
    return tuple(slice(start, start + window) for start, window in zip(starts, test_cfg['crop_size'], strict=True))
