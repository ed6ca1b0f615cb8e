"""A resumed training sees the images that it has not seen, and is the uninterrupted one, bit by bit, if asked to be."""

import os
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import multiprocessing
from torch.utils.data import DataLoader
from toy_training import ToyData, same_training, train

from mmlavit.engine import loops, runner
from mmlavit.engine.hooks.position_hook import PositionHook
from mmlavit.engine.loader import ResumableLoader
from mmlavit.engine.loops import EpochLoop, IterLoop, find_loop
from mmlavit.errors import ConfigError, UserError

BY_EPOCH = dict(by_epoch=True, max_epochs=2)  # of six iterations
BY_ITER = dict(by_epoch=False, max_iters=12, val_interval=4)
INFINITE = dict(type='InfiniteSampler', shuffle=True)
TRAININGS = {
    'epochs': dict(train_cfg=BY_EPOCH),
    'iterations': dict(train_cfg=BY_ITER, train_dataloader__sampler=INFINITE),
    'iterations, sampler with an end': dict(train_cfg=BY_ITER),
    'by shape': dict(train_cfg=BY_EPOCH, train_dataloader__batch_sampler=dict(type='mmdet.AspectRatioBatchSampler')),
}


@pytest.fixture(scope='module', params=TRAININGS)
def whole(request, tmp_path_factory):
    """A training that was not interrupted, its options, and what it saw."""
    folder = tmp_path_factory.mktemp('whole')
    options = TRAININGS[request.param]
    if 'by shape' in request.param:
        import mmdet.datasets  # noqa: F401  registers the sampler
    return folder, options, train(folder, **options)


@pytest.mark.parametrize(('iteration', 'workers'), [(3, 0), (6, 0), (9, 2)])
def test_resumed(whole, iteration, workers, tmp_path):
    folder, options, seen = whole
    ToyData.loaded.clear()
    resumed = train(tmp_path, folder / f'iter_{iteration}.pth', **options, train_dataloader__num_workers=workers)
    assert resumed.indices == seen.indices[iteration:] and resumed.places == seen.places[iteration:]
    assert same_training(tmp_path / 'iter_12.pth', folder / 'iter_12.pth')
    if workers == 0:
        assert len(ToyData.loaded) == 2 * (12 - iteration)


@pytest.mark.parametrize('iteration', [12, 15])
def test_resumed_after_two_passes(iteration, tmp_path):
    """Of a sampler with an end, in a training that counts iterations: the passes before give no batch any more."""
    options = dict(train_cfg=dict(by_epoch=False, max_iters=20, val_interval=4))
    seen = train(tmp_path / 'whole', **options)
    resumed = train(tmp_path / 'resumed', tmp_path / f'whole/iter_{iteration}.pth', **options)
    assert resumed.indices == seen.indices[iteration:] and len(resumed.indices) == 20 - iteration
    assert same_training(tmp_path / 'whole/iter_20.pth', tmp_path / 'resumed/iter_20.pth')


def test_each_process_draws_numbers_of_its_own(tmp_path, monkeypatch):
    """Else all would drop the same paths and mix images in the same way."""
    monkeypatch.setattr(runner, 'get_rank', lambda: 3)
    seen, draw = [], loops.seed_iteration
    monkeypatch.setattr(loops, 'seed_iteration', lambda *place: (seen.append(place), draw(*place)))
    train(tmp_path)
    assert [place[1:] for place in seen] == [(i, 3) for i in range(12)]
    numbers = []
    for place in ((0, 5, 0), (0, 5, 1), (0, 6, 0), (0, 5, 0)):
        loops.seed_iteration(*place)
        numbers.append(torch.rand(2).tolist())
    assert numbers[0] == numbers[3] and len({tuple(some) for some in numbers}) == 3


def test_resumed_twice(tmp_path):
    train(tmp_path / 'whole', train_dataloader__num_workers=2)
    train(tmp_path / 'once', tmp_path / 'whole/iter_3.pth')
    train(tmp_path / 'twice', tmp_path / 'once/iter_9.pth')
    assert same_training(tmp_path / 'whole/iter_12.pth', tmp_path / 'twice/iter_12.pth')


def test_checkpoints_by_epoch(tmp_path):
    options = dict(default_hooks__checkpoint=dict(by_epoch=True, interval=1, save_best='count', rule='greater'))
    whole = train(tmp_path / 'whole', **options)
    resumed = train(tmp_path / 'resumed', tmp_path / 'whole/epoch_1.pth', **options)
    assert resumed.places == whole.places[6:]
    assert same_training(tmp_path / 'whole/epoch_2.pth', tmp_path / 'resumed/epoch_2.pth')


def test_a_loader_knows_its_batches():
    """As hooks such as mmpretrain's PreciseBNHook ask for."""
    loader = ResumableLoader(DataLoader(list(range(10)), batch_size=4, drop_last=True))
    assert (loader.batch_size, loader.drop_last, len(loader)) == (4, True, 2)


def test_off_by_default(tmp_path):
    """Then an uninterrupted training is mmengine's, and a resumed one sees the same images with other augmentation."""
    whole = train(tmp_path / 'whole', exact_resume=False)
    resumed = train(tmp_path / 'resumed', tmp_path / 'whole/iter_3.pth', exact_resume=False)
    assert resumed.indices == whole.indices[3:]
    assert not same_training(tmp_path / 'whole/iter_12.pth', tmp_path / 'resumed/iter_12.pth')


@pytest.mark.parametrize('name', TRAININGS)
def test_as_mmengine(name, tmp_path, monkeypatch):
    if 'by shape' in name:
        import mmdet.datasets  # noqa: F401
    ours = train(tmp_path / 'ours', exact_resume=False, **TRAININGS[name])
    monkeypatch.setattr('time.sleep', lambda seconds: None)  # mmengine's between two passes
    monkeypatch.setattr('mmlavit.engine.runner._Runner', Runner)
    theirs = train(tmp_path / 'theirs', exact_resume=False, **TRAININGS[name])
    assert ours.indices == theirs.indices and ours.places == theirs.places
    assert same_training(tmp_path / 'ours/iter_12.pth', tmp_path / 'theirs/iter_12.pth')


def test_samples_are_augmented_each_in_its_own_way(tmp_path):
    drawn = []

    def keep(self, index):
        drawn.append(float(torch.rand(())))
        return dict(x=torch.zeros(4), index=index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ToyData, '__getitem__', keep)
        train(tmp_path, val_cfg=None, val_dataloader=None, val_evaluator=None)
    assert len(set(drawn)) == len(drawn) == 24


def train_both(rank, ports, folder):
    """What one of two processes does; each training has a port of its own, as the one before may still be open."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1')
    options = dict(launcher='pytorch', train_cfg=dict(by_epoch=True, max_epochs=3))
    os.environ['MASTER_PORT'] = str(ports[0])
    train(f'{folder}/whole', **options)
    os.environ['MASTER_PORT'] = str(ports[1])
    with pytest.raises(SystemExit, match='75'):  # rank 1 is asked to end in the second epoch
        train(f'{folder}/stopped', **options, send=dict(iteration=5, rank=1))
    os.environ['MASTER_PORT'] = str(ports[2])
    workers = dict(train_dataloader__num_workers=1)
    resumed = train(f'{folder}/resumed', f'{folder}/stopped/interrupted.pth', **options, **workers)
    assert resumed.places[0] == (2, 0, 6)


def test_two_processes(tmp_path, free_ports):
    # Forked, so that they need not import everything again.
    multiprocessing.start_processes(train_both, (free_ports(3), str(tmp_path)), nprocs=2, start_method='fork')
    assert same_training(tmp_path / 'whole/iter_9.pth', tmp_path / 'resumed/iter_9.pth')
    assert same_training(tmp_path / 'whole/iter_6.pth', tmp_path / 'stopped/interrupted.pth')


def resume_one(rank, ports, folder):
    """In one of two processes, of which only the first sees the checkpoint."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1')
    options = dict(launcher='pytorch', train_cfg=dict(by_epoch=True, max_epochs=3))
    os.environ['MASTER_PORT'] = str(ports[0])
    train(f'{folder}/{rank}', **options)
    os.environ['MASTER_PORT'] = str(ports[1])
    with pytest.raises(UserError, match='some processes begin at iteration 0 and others at 9: not all nodes see'):
        train(f'{folder}/{rank}', 'auto', **options)


def test_two_nodes_without_a_common_work_dir(tmp_path, free_ports):
    multiprocessing.start_processes(resume_one, (free_ports(2), str(tmp_path)), nprocs=2, start_method='fork')


@pytest.mark.parametrize('by_epoch', [True, False])
def test_resumed_without_a_seed(tmp_path, by_epoch):
    """Each image is seen once: the order is that of the training before."""
    options = dict(randomness=dict(seed=None), exact_resume=False)
    options |= TRAININGS['epochs' if by_epoch else 'iterations']
    whole = train(tmp_path, **options)
    resumed = train(tmp_path, tmp_path / 'iter_3.pth', **options)
    assert resumed.indices[:3] == whole.indices[3:6]
    assert sorted(sum(whole.indices[:3] + resumed.indices[:3], [])) == list(range(12))


def test_a_sampler_with_a_seed_of_its_own(tmp_path):
    options = dict(train_dataloader__sampler=dict(type='DefaultSampler', shuffle=True, seed=42))
    whole = train(tmp_path / 'whole', **options)
    resumed = train(tmp_path / 'resumed', tmp_path / 'whole/iter_3.pth', **options)
    assert resumed.indices == whole.indices[3:]


def test_resumed_with_another_seed(tmp_path):
    """mmengine goes on with that of the checkpoint, and so do we."""
    train(tmp_path / 'whole')
    train(tmp_path / 'resumed', tmp_path / 'whole/iter_3.pth', randomness=dict(seed=5))
    assert same_training(tmp_path / 'resumed/iter_12.pth', tmp_path / 'whole/iter_12.pth')


@LOOPS.register_module()
class LoopOfAUser(EpochBasedTrainLoop):
    """As mmengine's."""


def test_scaled_learning_rate_of_a_loop_of_ones_own(tmp_path):
    import mmdet.datasets  # noqa: F401  registers the sampler

    train(
        tmp_path,
        train_cfg=dict(type='LoopOfAUser', max_epochs=1),
        auto_scale_lr=dict(base_batch_size=16, enable=True),
        train_dataloader__batch_sampler=dict(type='mmdet.AspectRatioBatchSampler'),
        exact_resume=False,
    )
    (group,) = torch.load(tmp_path / 'iter_3.pth', weights_only=True)['optimizer']['param_groups']
    assert group['initial_lr'] == pytest.approx(0.01 * 2 / 16)


@pytest.mark.parametrize(
    ('meta', 'batch_size', 'seen'),
    [
        (dict(iter=13, batches_of_epoch=3, images_per_iteration=8), 8, 3),
        (dict(iter=13, batches_of_epoch=3, images_per_iteration=8), 4, 6),
        (dict(iter=13, batches_of_epoch=3, images_per_iteration=8), 16, 1),
        (dict(iter=13), 8, {EpochLoop: 0, IterLoop: 13}),  # another script's
    ],
)
def test_position(meta, batch_size, seen):
    for kind in (EpochLoop, IterLoop):
        loop = kind.__new__(kind)
        cfg = Config(dict(train_dataloader=dict(batch_size=batch_size)))
        runner = SimpleNamespace(train_loop=loop, _resume=True, world_size=1, cfg=cfg)
        PositionHook().after_load_checkpoint(runner, dict(meta=dict(meta, epoch=2)))
        assert loop.seen == (seen[kind] if isinstance(seen, dict) else seen)


@pytest.mark.parametrize(
    ('cfg', 'kind'),
    [
        (BY_EPOCH, EpochLoop),
        (BY_ITER, IterLoop),
        (dict(type='EpochBasedTrainLoop'), EpochLoop),
        (dict(type=IterBasedTrainLoop), IterLoop),
        (dict(type=EpochBasedTrainLoop, by_epoch=True), None),
        (dict(type=dict), None),
        (dict(max_epochs=2), None),
    ],
)
def test_find_loop(cfg, kind):
    assert find_loop(cfg) is kind


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(randomness=dict(seed=None)), 'needs one seed for all processes'),
        (dict(randomness=dict(seed=1, diff_rank_seed=True)), 'needs one seed for all processes'),
        (dict(runner_type='Other'), "does not work with runner_type='Other'"),
        (dict(train_cfg=dict(type='Other')), 'needs a train loop of mmengine'),
    ],
)
def test_what_cannot_be_exact(options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train(tmp_path, **options)
