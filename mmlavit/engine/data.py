"""Watch over the data of a run: faults are named with their file, or left out and counted."""

from __future__ import annotations

import logging
import mmap
import os.path as osp
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from json import JSONDecoder
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import barrier, broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from torch.utils.data import DataLoader, IterableDataset

from mmlavit.datasets.check.coco import find_class_fault, read_coco, reads_coco
from mmlavit.datasets.check.config import explain_dataset
from mmlavit.datasets.check.evaluators import find_evaluator_faults, find_topk_fault
from mmlavit.datasets.check.folders import find_order_fault, find_other_folders
from mmlavit.datasets.check.maps import find_zero_label_fault
from mmlavit.datasets.guard import find_leaves, guard_dataset
from mmlavit.deployment.evaluation import ExportedModel
from mmlavit.errors import ConfigError, DataError, UserError
from mmlavit.models.consistency import find_class_numbers, require_classes

SKIPPED = 'skipped_data.txt'
_CATEGORIES = re.compile(rb'"categories"\s*:\s*\[')
_LONGEST = 1 << 20  # bytes of a list of categories that is looked for


def watch_data(runner, cfg: Config) -> None:
    """Have a runner build data loaders whose faults are told in one line.

    With ``skip_broken_data=True`` in the config, images for training that cannot be used are left out, listed in
    ``skipped_data.txt`` in the work dir and counted in the log.

    Args:
        runner (Runner or FlexibleRunner): Before it trains or tests.
        cfg (Config): The config of the run.
    """
    build = runner.build_dataloader
    skip_file = osp.join(cfg.work_dir, SKIPPED) if cfg.get('skip_broken_data') else None
    numbers = [number for _, number in find_class_numbers(cfg.model, 'model')]
    folders: dict[str, Mapping[str, int]] = {}

    def guard(dataset: Any, training: bool) -> None:
        # Labels of a retrieval's queries are the images that they should find.
        classes = None if 'prototype' in cfg.model and not training else min(numbers, default=None)
        guard_dataset(dataset, classes, skip_file if training else None)

    def build_dataloader(dataloader: Any, *args: Any, **kwargs: Any) -> DataLoader:
        try:
            loader = build(dataloader, *args, **kwargs)
        except UserError:
            raise
        except Exception as error:  # a toolbox can stumble over anything in an annotation file
            raise explain_dataset(dataloader['dataset'], cfg.model, error) from error
        evaluators = [
            cfg.get(f'{split}_evaluator')
            for split in ('val', 'test')
            if dataloader is getattr(runner, f'_{split}_dataloader')
        ]
        model = getattr(runner, 'model', None)
        model = getattr(model, 'module', model)
        for evaluator in evaluators:
            if fault := find_topk_fault(evaluator, min(numbers, default=None)):
                raise ConfigError(fault)
        leaves = [leaf for leaf in find_leaves(loader.dataset) if not isinstance(leaf, IterableDataset)]
        for leaf in leaves:
            if not len(leaf):
                raise DataError(f'{_name(leaf)} gives no image')
            _require_fitting_classes(leaf, cfg, evaluators, alone=len(leaves) == 1)
            if isinstance(model, ExportedModel):
                model.require_classes((getattr(leaf, 'metainfo', None) or {}).get('classes'), _name(leaf))
            steps = getattr(getattr(leaf, 'pipeline', None), 'transforms', ())
            other = find_other_folders(leaf, folders) if numbers else ''  # without classes, labels may be unused
            if fault := other or find_order_fault(leaf) or find_zero_label_fault(leaf, steps):
                raise DataError(fault)
        guard(loader.dataset, dataloader is runner._train_dataloader)
        return loader

    runner.build_dataloader = build_dataloader
    runner.register_hook(GuardHook(guard))
    if skip_file is not None:
        runner.register_hook(SkippedDataHook(Path(skip_file)))


@contextmanager
def explain_sizes() -> Iterator[None]:
    """Say in one line that the images of a batch cannot be put together, where torch speaks of tensors.

    Raises:
        ConfigError: If they have different sizes.
    """
    try:
        yield
    except RuntimeError as error:
        found = re.search(r'stack expects each tensor to be equal size, but got (\[.*?\]).*? and (\[.*?\])', str(error))
        if not found:
            raise
        raise ConfigError(
            f'the images of a batch have different sizes ({found[1]} and {found[2]}); let the pipeline of the '
            "data loader give one size (Resize, RandomCrop; mmseg's model.data_preprocessor.size is the crop's), or "
            'set its batch_size to 1'
        ) from error


class GuardHook(Hook):
    """Guard the data of training again where a hook, such as mmdet's ``PipelineSwitchHook``, has set a new pipeline.

    Args:
        guard (Callable): Takes the dataset, and whether it is for training.
    """

    priority = 'LOWEST'  # after those hooks

    def __init__(self, guard: Callable[[Any, bool], None]) -> None:
        self.guard = guard

    def before_train_epoch(self, runner) -> None:
        """Guard; in our loops, before worker processes start."""
        self.guard(runner.train_dataloader.dataset, True)


class SkippedDataHook(Hook):
    """Log how many images were left out.

    Args:
        file (Path): One line for each, which any process may have added.
    """

    priority = 'NORMAL'  # before LoggerHook

    def __init__(self, file: Path) -> None:
        self.file = file
        self._told = 0

    def before_train(self, runner) -> None:
        """Begin a new list with a new training."""
        if not runner._resume and is_main_process():
            self.file.unlink(missing_ok=True)
        barrier()  # before any process adds to it

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        """Look into the file, every 50 iterations."""
        if self.every_n_train_iters(runner, 50):
            self._tell(runner)

    def after_train(self, runner) -> None:
        """Look into the file."""
        self._tell(runner)

    def _tell(self, runner) -> None:
        skipped = set(self.file.read_text().splitlines()) if self.file.is_file() else set()
        runner.message_hub.update_scalar('train/skipped_images', len(skipped))
        if len(skipped) > self._told:
            self._told = len(skipped)
            runner.logger.warning(f'Images left out so far: {len(skipped):,}; {self.file} says which and why')


def _name(dataset: Any) -> str:
    """Give what messages call a dataset."""
    return getattr(dataset, 'ann_file', '') or getattr(dataset, 'data_root', None) or type(dataset).__name__


def _require_fitting_classes(dataset: Any, cfg: Config, evaluators: Iterable[Any], alone: bool) -> None:
    """Make sure that classes of a dataset, of its annotation file, of the model and of its metrics are the same."""
    metainfo = getattr(dataset, 'metainfo', None) or {}
    classes, file = metainfo.get('classes'), getattr(dataset, 'ann_file', '')
    require_classes(cfg.model, metainfo, _name(dataset), cfg.get('data_preprocessor'))
    if classes is not None and reads_coco(type(dataset)) and osp.isfile(file):
        categories = _read_categories(file)
        if categories is None or find_class_fault(categories, classes):
            # What was found may be something else of that name. Reading it all takes seconds.
            categories = read_coco(Path(file))[0].get('categories', [])
        if fault := find_class_fault(categories, classes):
            raise DataError(f'{file} {fault}')
        for evaluator in evaluators:
            indices = getattr(dataset, '_indices', None)
            # Reading the file takes time and memory, so one process does it.
            found = [None]
            if is_main_process():
                found = [[*find_evaluator_faults(evaluator, file, classes, alone, indices)]]
            broadcast_object_list(found)
            for fault in found[0]:
                if not fault.startswith('note: '):
                    raise DataError(fault)
                print_log(fault.removeprefix('note: '), 'current', logging.WARNING)


def _read_categories(file: str) -> list[dict] | None:
    """Read what are most likely the categories in COCO's format, without the rest of the file."""
    with open(file, 'rb') as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        key = _CATEGORIES.match(content, max(0, content.rfind(b'"categories"')))
        start = key.end() - 1 if key else 0
        end = content.find(b']', start)
        while key and 0 < end - start < _LONGEST:  # to the bracket that closes the list, not one inside
            try:
                categories, _ = JSONDecoder().raw_decode(content[start : end + 1].decode())
            except ValueError:
                end = content.find(b']', end + 1)
            else:
                return categories if all(isinstance(one, dict) and 'name' in one for one in categories) else None
    return None
