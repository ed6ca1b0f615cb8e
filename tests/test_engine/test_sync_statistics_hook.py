"""BatchNorm statistics of two processes, each with its own images."""

from types import SimpleNamespace

import torch
from mmengine.model import ExponentialMovingAverage
from torch import distributed as dist
from torch import multiprocessing, nn

from mmlavit.engine.hooks import SyncStatisticsHook
from mmlavit.models import AttentionResidual, Scores

PROCESSES, STEPS, GRID, KEYS = 2, 3, (4, 6), 5


def make_scores(rank, step):
    """Scores (2, N, 2 heads * K); the images of one process are brighter than those of the other."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    return Scores(torch.randn(2, GRID[0] * GRID[1], 2 * KEYS, generator=generator) + rank, 2, GRID)


def make_model():
    """An attention residual, one that is frozen, and a synchronised norm, which takes care of itself."""
    torch.manual_seed(0)
    model = nn.ModuleList([AttentionResidual(2, 4, 0.1), AttentionResidual(2, 4, 0.1), nn.SyncBatchNorm(2)])
    model[1].eval()
    return model


def train(rank, port, folder):
    """What one process does: steps without an optimizer, followed by the hook and by EMA."""
    address = f'tcp://127.0.0.1:{port}'
    dist.init_process_group('gloo', init_method=address, rank=rank, world_size=PROCESSES)
    model = make_model()
    ema = ExponentialMovingAverage(model, momentum=0.3, update_buffers=True)
    for other in (model[1].norm, model[2]):
        other.running_mean.fill_(rank)
    for step in range(STEPS):
        model[0](make_scores(rank, step))
        hook = SyncStatisticsHook()
        hook.after_train_iter(SimpleNamespace(model=model), step)
        ema.update_parameters(model)
    torch.save([model.state_dict(), ema.module.state_dict()], f'{folder}/{rank}.pth')
    dist.destroy_process_group()


def test_statistics_are_the_mean_of_all_processes(tmp_path, free_port):
    multiprocessing.spawn(train, (free_port, str(tmp_path)), nprocs=PROCESSES)
    (first, first_ema), (second, second_ema) = (torch.load(tmp_path / f'{rank}.pth') for rank in range(PROCESSES))

    # Each process alone; running statistics are linear in those of the batches, so their mean may be taken at the end.
    alone = [make_model()[0] for _ in range(PROCESSES)]
    for rank, residual in enumerate(alone):
        for step in range(STEPS):
            residual(make_scores(rank, step))
    assert not torch.allclose(alone[0].norm.running_mean, alone[1].norm.running_mean, atol=0.1)
    for name in ('running_mean', 'running_var'):
        expected = (getattr(alone[0].norm, name) + getattr(alone[1].norm, name)) / PROCESSES
        torch.testing.assert_close(first[f'0.norm.{name}'], expected)
        assert torch.equal(first[f'0.norm.{name}'], second[f'0.norm.{name}'])
        assert torch.equal(first_ema[f'0.norm.{name}'], second_ema[f'0.norm.{name}'])
    for name in ('1.norm.running_mean', '2.running_mean'):
        assert torch.equal(first[name], torch.zeros(2)) and torch.equal(second[name], torch.ones(2))


def test_one_process():
    model = make_model()
    model[0](make_scores(0, 0))
    before = model[0].norm.running_mean.clone()
    SyncStatisticsHook().after_train_iter(SimpleNamespace(model=model), 0)
    assert torch.equal(model[0].norm.running_mean, before)
    assert before.abs().max() > 0
