"""What is wrong with the data of a config, found before a run: images, annotations, and classes against the heads."""

from __future__ import annotations

import copy
import inspect
import os
import os.path as osp
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, init_default_scope

from mmlavit.errors import ConfigError, DataError, UserError, first_few
from mmlavit.models.consistency import find_class_numbers, require_channels, require_classes
from mmlavit.utils.config_types import find_class
from mmlavit.utils.data_paths import explain_missing, find_leaf_configs, is_downloaded, is_remote, missing_data
from mmlavit.utils.toolbox import load_toolbox

from .boxes import find_box_faults
from .coco import Masks, check_coco_file, reads_coco
from .evaluators import find_evaluator_faults, find_topk_fault
from .folders import check_folders, find_other_folders, find_unlisted
from .images import find_fault, find_file_fault, find_map_fault, find_missing, read_labels, read_size
from .maps import describe_loading, find_zero_label_fault, is_panoptic, maps_have_its_classes

_SPLITS = ('train', 'val', 'test')
_TARGETS = {'gt_label', 'instances', 'seg_map_path'}


def check_config(cfg: Config, decode: int | None) -> Iterator[str]:
    """Yield what is wrong with a config's data, and with its model as far as that follows from the data.

    Args:
        cfg (Config): Config of a classifier, detector or segmentor.
        decode (int, optional): Images and label maps of each dataset to decode, drawn at random; None: all. The others
            are opened, and decoded if they do not end as they should.

    Yields:
        str: A finding, with the file and what to do; what is no fault begins with ``note:``.

    Raises:
        UserError: If it is a part of a config, without a model or a toolbox.
    """
    lacking = [key for key in ('model', 'default_scope') if cfg.get(key) is None]
    if lacking:
        raise UserError(f'{cfg.filename} has no {" and no ".join(lacking)}; expected the config of a whole model')
    load_toolbox(cfg.default_scope)
    init_default_scope(cfg.default_scope)
    missing = missing_data(cfg, _SPLITS)
    if missing:
        yield from (f'{path} does not exist: {explain_missing(cfg, missing)}' for path in missing)
        return
    try:
        require_channels(cfg.model)
    except ConfigError as error:
        yield str(error)
    seen: list[dict] = []
    folders: dict[str, Mapping[str, int]] = {}
    told: set[str] = set()
    numbers = [number for _, number in find_class_numbers(cfg.model, 'model')]
    for split in _SPLITS:
        loader = cfg.get(f'{split}_dataloader')
        leaves = [*find_leaf_configs(loader.dataset)] if loader is not None else []
        for dataset in leaves:
            data = {key: value for key, value in dataset.items() if key not in ('pipeline', 'test_mode', 'filter_cfg')}
            if data not in seen:
                seen.append(data)
                place = f'{split}_dataloader'
                # A test may be on other data.
                compared = None if split == 'test' else folders
                beside = cfg.get('data_preprocessor')
                yield from check_dataset(
                    ConfigDict(dataset), cfg.model, place, decode, folders=compared, preprocessor=beside
                )
            faults = [*_check_evaluator(dataset, cfg.get(f'{split}_evaluator'), alone=len(leaves) == 1)]
            yield from (fault for fault in faults if fault not in told)
            told.update(faults)
        fault = find_topk_fault(cfg.get(f'{split}_evaluator'), min(numbers, default=None))
        if fault and fault not in told:
            yield fault
            told.add(fault)


def check_dataset(
    dataset: ConfigDict,
    model: Mapping[str, Any],
    place: str,
    decode: int | None,
    annotations_only: bool = False,
    folders: dict[str, Mapping[str, int]] | None = None,
    preprocessor: Mapping[str, Any] | None = None,
) -> Iterator[str]:
    """Yield what is wrong with one dataset.

    Args:
        dataset (ConfigDict): Its config; no wrapper.
        model (Mapping): Config of the model.
        place (str): What messages call the dataset where it has no annotation file.
        decode (int, optional): As for :func:`check_config`.
        annotations_only (bool): Whether to leave images alone.
        folders (dict, optional): Class folders of the datasets before, as for :func:`find_other_folders`.
        preprocessor (Mapping, optional): As for :func:`~mmlavit.models.consistency.require_classes`.

    Yields:
        str: As of :func:`check_config`.
    """
    kind = find_class(dataset, DATASETS)
    faulty = False
    if reads_coco(kind) and not is_remote(dataset):
        classes = _find_classes(kind, dataset)
        masks = _find_masks(dataset.get('pipeline') or ())
        test = bool(dataset.get('test_mode'))
        for finding in check_coco_file(Path(_ann_file(dataset)), classes, masks, test):
            faulty |= not finding.startswith('note:')
            yield finding
    try:
        # Everything that is listed, also what training leaves out.
        with redirect_stdout(StringIO()):  # pycocotools reports its progress
            own = dict(download=False) if is_downloaded(dataset) else {}
            built = DATASETS.build(ConfigDict(dataset, **_everything(kind), **own))
            if hasattr(built, 'full_init'):
                built.full_init()
    except Exception as error:  # a toolbox can stumble over anything in an annotation file
        if is_downloaded(dataset) and 'Cannot find' in str(error):  # mmpretrain's, also where it is not whole
            yield f'note: {place}: {kind.__name__} is not there, or not whole; a training will download it'
        elif not faulty:
            what = _ann_file(dataset) or dataset.get('data_root') or place
            yield f'{what}: {getattr(kind, "__name__", kind)} cannot read it ({type(error).__name__}: {error})'.replace(
                '\n', ' '
            )
        return
    if not hasattr(built, 'full_init'):
        yield f'note: {place}: {kind.__name__} is no dataset of mmengine, so it is not looked at'
        return
    classes = built.metainfo.get('classes')
    try:
        require_classes(model, built.metainfo, place, preprocessor)
    except ConfigError as error:
        yield str(error)
    yield from check_folders(built)
    if fault := find_zero_label_fault(built, dataset.get('pipeline') or ()):
        yield f'{place}: {fault}'
    if folders is not None and any(find_class_numbers(model, 'model')):  # else labels may not be classes
        fault = find_other_folders(built, folders)
        yield from [fault] if fault else []
    entries = [built.get_data_info(i) for i in range(len(built))]
    if fault := _find_empty(built, entries, dataset.get('filter_cfg')):
        yield f'{_ann_file(dataset) or place}: {fault}'
    yield from _check_labels(entries, classes, model, _ann_file(dataset) or place)
    if not annotations_only:
        if not reads_coco(kind):  # else the file has been looked at
            yield from find_box_faults(entries, classes, _ann_file(dataset) or place)
        yield from find_unlisted(built, entries)
        yield from _check_images(entries, decode, dataset, built)


def build_dataset(dataset: Mapping[str, Any], model: Mapping[str, Any]) -> Any:
    """Build a dataset in the current scope, and say in one line what is wrong with its annotations if it cannot be.

    Args:
        dataset (Mapping): Its config, or that of a wrapper.
        model (Mapping): Config of the model.

    Returns:
        Dataset: The dataset.

    Raises:
        UserError: If the annotations are at fault.
    """
    try:
        with redirect_stdout(StringIO()):  # pycocotools reports its progress
            return DATASETS.build(copy.deepcopy(dataset))
    except UserError:
        raise
    except Exception as error:  # a toolbox can stumble over anything in an annotation file
        raise explain_dataset(dataset, model, error) from error


def explain_dataset(dataset: Mapping[str, Any], model: Mapping[str, Any], error: Exception) -> Exception:
    """Say what is wrong with the annotations, if that is why a dataset could not be built.

    Args:
        dataset (Mapping): Its config, or that of a wrapper.
        model (Mapping): Config of the model.
        error (Exception): What building it raised.

    Returns:
        Exception: One line about the annotations; the error itself if they have no fault.
    """
    for leaf in find_leaf_configs(dataset):
        if is_remote(leaf):  # where we cannot look
            continue
        for finding in check_dataset(leaf, model, 'the data', 0, annotations_only=True):
            if not finding.startswith('note:'):
                return DataError(finding)
    return error


def _find_classes(kind: type, dataset: Mapping[str, Any]) -> Any:
    """Give the classes of a dataset of mmengine as it will find them."""
    try:
        return kind._load_metainfo(copy.deepcopy(dataset.get('metainfo'))).get('classes')
    except TypeError:  # as building it will say
        return None


def _find_masks(pipeline: Sequence[Mapping[str, Any]]) -> Masks:
    """Tell which masks a pipeline uses."""
    loading = [step for step in pipeline if step.get('with_mask')]
    if any(step.get('poly2mask') is False for step in loading):
        return 'polygons'
    return 'any' if loading else 'none'


def _check_evaluator(dataset: Mapping[str, Any], evaluator: Any, alone: bool) -> Iterator[str]:
    """Yield what does not fit between a dataset and the metrics of its predictions."""
    kind = find_class(dataset, DATASETS)
    if reads_coco(kind) and dataset.get('ann_file') and not is_remote(dataset):
        classes = _find_classes(kind, dataset)
        yield from find_evaluator_faults(evaluator, _ann_file(dataset), classes, alone, dataset.get('indices'))


def _everything(kind: type | str) -> dict[str, Any]:
    """Arguments for a dataset that lists all it has and transforms nothing, as far as its class takes them."""
    wanted = dict(pipeline=[], filter_cfg=None, serialize_data=False)
    if isinstance(kind, str):  # unknown, as the registry will say
        return wanted
    taken = inspect.signature(kind).parameters
    anything = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken.values())
    return {key: value for key, value in wanted.items() if anything or key in taken}


def _find_empty(dataset: Any, entries: Sequence[Mapping], rules: Mapping[str, Any] | None) -> str:
    """Say why a dataset that has all it lists gives no image by its ``filter_cfg``; '' if it gives some."""
    if not entries:
        suffix = getattr(dataset, 'img_suffix', None)
        folder = getattr(dataset, 'data_prefix', {}).get('img_path')
        if suffix and folder and not getattr(dataset, 'ann_file', ''):
            return f'no image is there: no file in {folder} ends in {suffix}; set img_suffix to how they end'
        return 'it lists no image'
    if rules:
        dataset.filter_cfg = rules
        if not dataset.filter_data():
            return (
                f'filter_cfg={dict(rules)} leaves none of its {len(entries):,} images; leave it out, or correct the '
                'annotations'
            )
    return ''


def _ann_file(dataset: Mapping[str, Any]) -> str:
    """Path of the annotation file; '' if there is none."""
    name = dataset.get('ann_file') or ''
    return osp.join(dataset.get('data_root') or '', osp.expanduser(name)) if name else ''


def _check_labels(
    entries: Sequence[Mapping], classes: Sequence[str] | None, model: Mapping[str, Any], place: str
) -> Iterator[str]:
    """Yield images that are listed twice, and labels of images that the model has no class for."""
    # There may be several captions, questions or phrases of an image.
    names = Counter(entry['img_path'] for entry in entries if _has_file(entry) and entry.keys() & _TARGETS)
    yield from _tell([str(name) for name, count in names.items() if count > 1], 'is listed more than once: remove one')
    numbers = [number for _, number in find_class_numbers(model, 'model')]
    limit = min([*numbers, *([len(classes)] if classes else [])], default=None)
    wrong = []
    for entry in entries:
        label = entry.get('gt_label')
        labels = label if isinstance(label, (list, tuple)) else [label]
        # Of several tasks, each of which has its own classes; or the numbers of images that a query should find.
        if isinstance(label, Mapping) or 'prototype' in model:
            continue
        if limit is not None and label is not None and any(not 0 <= value < limit for value in labels):
            wrong.append(f'{entry["img_path"] if _has_file(entry) else "an image"} (label {label})')
    yield from _tell(wrong, f'is out of range in {place}: the model has classes 0 to {(limit or 0) - 1}')


def _has_file(entry: Mapping) -> bool:
    """Tell whether an image is a file; CIFAR's, for one, are parts of an archive."""
    return isinstance(entry.get('img_path'), (str, os.PathLike))


def _label_values(dataset: Any) -> set[int] | None:
    """Values that may be in the files of label maps; None where the dataset renames them, or has other classes."""
    classes = dataset.metainfo.get('classes')
    renamed = getattr(dataset, 'label_map', None) or is_panoptic(dataset)
    if classes is None or renamed or not maps_have_its_classes(dataset):
        return None
    first = int(bool(getattr(dataset, 'reduce_zero_label', False)))
    return {
        *range(min(len(classes) + first, 256)),  # mmseg keeps 8 bits
        getattr(dataset, 'ignore_index', 255),
        255,
        65535,
    }  # the last, of 16 bits, loads as 255


def _check_images(
    entries: Sequence[Mapping], decode: int | None, config: Mapping[str, Any], dataset: Any
) -> Iterator[str]:
    """Yield what is wrong with the files of images and label maps, as far as they are files of this machine."""
    pipeline = config.get('pipeline') or []
    if any(map(is_remote, [config, *pipeline])):
        return
    loading = describe_loading(pipeline)
    map_fault = partial(find_map_fault, panoptic=is_panoptic(dataset))
    labels = _label_values(dataset)
    drawn = range(len(entries))
    if decode is not None:
        drawn = set(random.sample(drawn, min(decode, len(entries))))
    found: dict[str, list[str]] = {}
    seen: set[int] = set()  # labels, until there are two
    ignored = {getattr(dataset, 'ignore_index', 255), 255, 65535}

    def note(path: str, fault: str) -> None:
        if fault:
            found.setdefault(fault, []).append(str(path))

    for number, entry in enumerate(entries):
        if not _has_file(entry):
            continue
        path = entry['img_path']
        if loading.depth == 'unknown':
            fault = find_missing(path)
        else:
            fault = (find_fault if loading.depth == '8 bits' else find_file_fault)(path, number in drawn)
        note(path, fault)
        size = None if fault or loading.depth == 'unknown' else read_size(path, loading.turns)
        if size and 'height' in entry and size != (entry['height'], entry['width']):
            note(
                path,
                f'is {size[1]}x{size[0]} as it is loaded, but {entry["width"]}x{entry["height"]} by the annotations '
                '(turned by an EXIF tag?): save it as it is to be seen, or correct width and height',
            )
        if entry.get('seg_map_path') is not None and not fault:
            if not loading.maps:
                note(entry['seg_map_path'], find_missing(entry['seg_map_path']))
            elif number in drawn:
                fault = map_fault(entry['seg_map_path'], size, labels)
                note(entry['seg_map_path'], fault)
                if not fault and labels is not None and len(seen - ignored) < 2:
                    seen |= read_labels(entry['seg_map_path'])
            elif not osp.isfile(entry['seg_map_path']):
                note(entry['seg_map_path'], 'does not exist, though its image does: add it, or remove the image')
    for fault, paths in found.items():
        yield from _tell(paths, fault)
    if len(seen - ignored) == 1 and len(dataset.metainfo['classes']) > 1:
        beside = ' beside 255, which is ignored: maps of 0 and 255 have to be of 0 and 1' if 255 in seen else ''
        yield f'note: the label maps that were looked at have no label but {min(seen - ignored)}{beside}'


def _tell(paths: Sequence[str], fault: str) -> Iterator[str]:
    """Yield one line about all files with a fault, if there are any."""
    if len(paths) == 1:
        yield f'{paths[0]} {fault}'
    elif paths:
        yield f'{len(paths):,} files ({first_few(paths)}), each {fault}'
