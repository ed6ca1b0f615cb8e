"""A training of milliseconds, through the same way as any: dropout, augmentation, EMA, momentum, validation."""

from __future__ import annotations

import itertools
import os
import signal

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS

from mmlavit.engine import run

SIZE = 12
_names = itertools.count()


@MODELS.register_module()
class ToyModel(BaseModel):
    """One linear layer behind dropout."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.norm = torch.nn.BatchNorm1d(4)

    def forward(self, x, index, mode):
        """The loss of training, or predictions."""
        out = self.layer(torch.nn.functional.dropout(self.norm(x), 0.3, self.training))
        return dict(loss=out.square().mean()) if mode == 'loss' else list(out)


@DATASETS.register_module()
class ToyData(torch.utils.data.Dataset):
    """Samples of four numbers with an augmentation by Python, NumPy and torch."""

    loaded: list[int] = []  # by trainings, in this process

    def __init__(self, training=True):
        self.training = training

    def __len__(self):
        return SIZE

    def get_data_info(self, index):
        """What mmdet's sampler by shapes asks for."""
        return dict(width=index % 3, height=1)

    def __getitem__(self, index):
        if self.training:
            self.loaded.append(index)
        noise = torch.rand(4) + float(np.random.rand()) + float(torch.randint(3, ()))
        return dict(x=noise + index, index=index)


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """Always the same."""

    def process(self, data_batch, data_samples):
        """Count."""
        self.results.append(len(data_samples))

    def compute_metrics(self, results):
        """Give the count."""
        return dict(count=sum(results))


@METRICS.register_module()
class Rising(BaseMetric):
    """Better each time that it is computed."""

    values: list[int] = []  # of trainings, in this process

    def process(self, data_batch, data_samples):
        """Keep nothing."""
        self.results.append(0)

    def compute_metrics(self, results):
        """Give the next number."""
        self.values.append(len(self.values) + 1)
        return dict(score=self.values[-1])


BEST = dict(
    train_cfg=dict(by_epoch=True, max_epochs=2),
    default_hooks__checkpoint=dict(
        type='CheckpointHook', by_epoch=True, interval=1, save_best='score', rule='greater', max_keep_ckpts=1
    ),
    val_evaluator=dict(type='Rising'),
)
"""Options of :func:`train` for one with a best checkpoint."""


@HOOKS.register_module()
class Recorder(Hook):
    """Keeps what each iteration got, and sends this process a signal in one of them."""

    last: Recorder  # the one of the training that was started last

    def __init__(self, number=int(signal.SIGTERM), iteration=None, val_iteration=None, rank=0):
        Recorder.last = self
        self.signal = number, rank
        self.iterations = iteration, val_iteration
        self.indices, self.places = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        """Keep; and send, while the iteration runs."""
        self.indices.append(data_batch['index'].tolist())
        self.places.append((runner.epoch, batch_idx, runner.iter))
        self._send(runner, runner.iter == self.iterations[0])

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        """Send in a validation."""
        self._send(runner, batch_idx == self.iterations[1])

    def _send(self, runner, now):
        if now and runner.rank == self.signal[1]:
            os.kill(os.getpid(), self.signal[0])


@HOOKS.register_module()
class SaveStart(Hook):
    """Saves a model before it is trained."""

    def before_train(self, runner):
        """Save."""
        runner.save_checkpoint(runner.work_dir, 'start.pth', save_optimizer=False)


def train(work_dir, resume=None, **options) -> Recorder:
    """Train with a checkpoint after each third iteration.

    Args:
        work_dir: Where to.
        resume: The checkpoint to go on from; 'auto' as --resume.
        options: Entries of the config, dotted ones with __ for the dots; 'send' has the arguments of the recorder.
    """
    loader = dict(batch_size=2, num_workers=0, collate_fn=dict(type='default_collate'))
    data, sampler = dict(type='ToyData'), dict(type='DefaultSampler')
    cfg = Config(
        dict(
            model=dict(type='ToyModel'),
            train_dataloader=dict(loader, dataset=data, sampler=sampler),
            val_dataloader=dict(loader, dataset=dict(data, training=False), sampler=dict(sampler, shuffle=False)),
            val_cfg=dict(),
            val_evaluator=dict(type='ToyMetric'),
            train_cfg=dict(by_epoch=True, max_epochs=2),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
            param_scheduler=[dict(type='CosineAnnealingLR', T_max=30, by_epoch=False)],
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3)),
            custom_hooks=[dict(type='EMAHook', momentum=0.3, update_buffers=True)],
            randomness=dict(seed=0),
            exact_resume=True,
            work_dir=str(work_dir),
            experiment_name=f'{work_dir}{os.getpid()}{next(_names)}',
            resume=resume if resume == 'auto' else resume is not None,
            load_from=None if resume in (None, 'auto') else str(resume),
            log_level='WARNING',
        )
    )
    cfg.custom_hooks.append(dict(type='Recorder', **options.pop('send', {})))
    for key, value in options.items():
        if '__' in key:
            cfg.merge_from_dict({key.replace('__', '.'): value})
        else:
            cfg[key] = value
    run(cfg, 'train')
    return Recorder.last


def same(one, other) -> bool:
    """Whether two nests of tensors and values are equal, bit by bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def same_training(one, other) -> bool:
    """Whether two checkpoints hold the same training."""
    first, second = (torch.load(path, weights_only=True) for path in (one, other))
    parts = ('state_dict', 'optimizer', 'param_schedulers', *(['ema_state_dict'] if 'ema_state_dict' in first else []))
    return all(same(first[part], second[part]) for part in parts)
