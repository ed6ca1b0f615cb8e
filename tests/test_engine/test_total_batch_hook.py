"""What is said when a training is resumed with another number of images per iteration."""

import re
from types import SimpleNamespace

import pytest
from mmengine.config import Config

from mmlavit.engine.hooks.total_batch_hook import TotalBatchHook


def make_runner(world_size, batch_size, resume=True):
    warnings = []
    return SimpleNamespace(
        world_size=world_size,
        cfg=Config(dict(train_dataloader=dict(batch_size=batch_size))),
        logger=SimpleNamespace(warning=warnings.append),
        warnings=warnings,
        _resume=resume,
    )


def save(world_size, batch_size):
    checkpoint = dict(meta=dict(epoch=1))
    TotalBatchHook().before_save_checkpoint(make_runner(world_size, batch_size), checkpoint)
    return checkpoint


@pytest.mark.parametrize(
    ('world_size', 'batch_size', 'advice'),
    [
        (8, 2, None),
        (16, 1, None),
        (4, 2, '--cfg-options train_dataloader.batch_size=4'),
        (1, 2, '--cfg-options train_dataloader.batch_size=16'),
        (32, 2, 'another number of processes, which divides 16'),
        (3, 2, 'another number of processes, which divides 16'),
    ],
)
def test_another_number_of_processes(world_size, batch_size, advice):
    runner = make_runner(world_size, batch_size)
    TotalBatchHook().after_load_checkpoint(runner, save(8, 2))
    assert len(runner.warnings) == (advice is not None)
    if advice:
        images = world_size * batch_size
        assert f'has {images} images per iteration, that of the checkpoint had 16' in runner.warnings[0]
        assert runner.warnings[0].endswith(f'To go on unchanged: {advice}')


@pytest.mark.parametrize(
    ('world_size', 'accumulative_counts', 'enable', 'said'),
    [
        (8, 1, False, None),
        (4, 2, False, None),
        (16, 1, True, None),
        (16, 1, False, 'has 32. In proportion it would be 2 times as large: --auto-scale-lr'),
        (1, 1, False, 'has 2. In proportion it would be 0.125 times as large: --auto-scale-lr'),
        (1, 4, False, r'has 8 images per step of the optimizer \(2 x accumulative_counts=4\). In proportion it would '
         'be 0.5 times as large: set optim_wrapper.optimizer.lr'),
        (8, 4, False, 'In proportion it would be 4 times as large: set optim_wrapper.optimizer.lr'),
        (1, 8, True, 'has made the learning rate one for 2 images, but this training has 16 images per step'),
    ],
)  # fmt: skip
def test_another_batch_than_the_learning_rate_is_for(world_size, accumulative_counts, enable, said):
    runner = make_runner(world_size, 2, resume=False)
    runner.cfg.auto_scale_lr = dict(base_batch_size=16, enable=enable)
    runner.optim_wrapper = SimpleNamespace(_accumulative_counts=accumulative_counts)
    TotalBatchHook().before_train(runner)
    assert len(runner.warnings) == (said is not None)
    if said is not None:
        assert re.search(said, runner.warnings[0])


def test_no_batch_that_the_learning_rate_is_for():
    for scaling in ({}, dict(auto_scale_lr=dict(enable=False))):
        runner = make_runner(1, 2, resume=False)
        runner.cfg.merge_from_dict(scaling)
        TotalBatchHook().before_train(runner)
        assert runner.warnings == []


def test_several_sources():
    """mmdet's MultiDataAspectRatioBatchSampler has a batch of each."""
    checkpoint = save(2, [8, 32])
    assert 'images_per_iteration' not in checkpoint['meta']
    for before in (checkpoint, save(8, 2)):
        runner = make_runner(2, [8, 32])
        TotalBatchHook().after_load_checkpoint(runner, before)
        assert runner.warnings == []


def test_nothing_to_compare():
    for runner, checkpoint in [
        (make_runner(1, 2, resume=False), save(8, 2)),  # a new training from these weights
        (make_runner(1, 2), dict(meta=dict(epoch=1))),  # saved by another script
        (make_runner(1, 2), dict(state_dict={})),
    ]:
        TotalBatchHook().after_load_checkpoint(runner, checkpoint)
        assert runner.warnings == []
