"""A training that is asked to end saves itself, and goes on from there."""

import multiprocessing
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, LOOPS
from mmengine.runner import EpochBasedTrainLoop
from toy_training import BEST, Rising, ToyModel, same, same_training, train

from mmlavit.engine.hooks import stop_hook
from mmlavit.engine.hooks.stop_hook import STOPPED_FILE
from mmlavit.engine.resume import find_whole_checkpoint
from mmlavit.errors import UserError


@pytest.fixture(autouse=True)
def signals():
    """Put the signals back, which a stopped training ignores until its process ends."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A training that was left alone."""
    folder = tmp_path_factory.mktemp('whole')
    train(folder)
    return folder


def stop(work_dir, resume=None, **options):
    with pytest.raises(SystemExit) as stopped:
        train(work_dir, resume, **options)
    assert stopped.value.code == 75


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('workers', [0, 2])
def test_stopped_in_an_epoch(whole, number, workers, tmp_path, capfd, signals):
    options = dict(train_dataloader__num_workers=workers, val_dataloader__num_workers=workers)
    stop(tmp_path, send=dict(number=int(number), iteration=3), **options)
    path = tmp_path / 'interrupted.pth'
    said = f'{number.name}: stopped after iteration 4 and saved to {path}; --resume goes on from there'
    assert capfd.readouterr().out.count(said) == 1
    assert find_whole_checkpoint(str(tmp_path)) == str(path)
    resumed = train(tmp_path, path, **options)
    assert resumed.places[0] == (0, 4, 4)
    assert same_training(tmp_path / 'iter_12.pth', whole / 'iter_12.pth')
    assert not path.exists()  # of no use any more


def test_signals_are_given_back(tmp_path, signals):
    train(tmp_path, train_cfg=dict(by_epoch=True, max_epochs=1))
    assert all(signal.getsignal(number) == handler for number, handler in signals.items())


@pytest.mark.parametrize('iteration', [5, 11])
def test_stopped_after_the_last_iteration_of_an_epoch(whole, iteration, tmp_path, capfd):
    stop(tmp_path, send=dict(iteration=iteration))
    resumed = train(tmp_path, tmp_path / 'interrupted.pth')
    assert len(resumed.places) == 11 - iteration
    assert same_training(tmp_path / 'iter_12.pth', whole / 'iter_12.pth')
    assert find_whole_checkpoint(str(tmp_path)) == str(tmp_path / 'iter_12.pth')
    assert 'is missing' not in capfd.readouterr().out


def test_stopped_in_a_validation(whole, tmp_path):
    """While EMAHook has its weights in the model."""
    stop(tmp_path, send=dict(val_iteration=1))
    assert same_training(tmp_path / 'interrupted.pth', whole / 'iter_6.pth')
    resumed = train(tmp_path, tmp_path / 'interrupted.pth')
    assert resumed.places[0] == (1, 0, 6)
    assert same_training(tmp_path / 'iter_12.pth', whole / 'iter_12.pth')


def test_stopped_in_a_validation_by_iterations(tmp_path):
    options = dict(
        train_cfg=dict(by_epoch=False, max_iters=6, val_interval=3),
        train_dataloader__sampler=dict(type='InfiniteSampler', shuffle=True),
    )
    train(tmp_path / 'whole', **options)
    stop(tmp_path / 'stopped', send=dict(val_iteration=1), **options)
    assert same_training(tmp_path / 'stopped/interrupted.pth', tmp_path / 'whole/iter_3.pth')
    resumed = train(tmp_path / 'stopped', tmp_path / 'stopped/interrupted.pth', **options)
    assert resumed.places[0] == (0, 3, 3)
    assert same_training(tmp_path / 'stopped/iter_6.pth', tmp_path / 'whole/iter_6.pth')


@pytest.mark.parametrize(
    ('cfg', 'send'),
    [
        (dict(by_epoch=True, max_epochs=1), dict(val_iteration=1)),
        (dict(by_epoch=False, max_iters=6, val_interval=3), dict(val_iteration=1)),
        (dict(by_epoch=False, max_iters=6, val_interval=3), dict(iteration=2)),
        (dict(by_epoch=False, max_iters=6, val_interval=4), dict(iteration=5)),
    ],
)
def test_the_validation_is_made_up_for(cfg, send, tmp_path, monkeypatch):
    """That it was stopped in, or that would have come next."""
    monkeypatch.setattr(Rising, 'values', [])
    options = {**BEST, 'train_cfg': cfg}
    train(tmp_path / 'whole', **options)
    number, best = len(Rising.values), [path.name for path in (tmp_path / 'whole').glob('best_*')]
    Rising.values.clear()
    stop(tmp_path / 'stopped', send=send, **options)
    train(tmp_path / 'stopped', 'auto', **options)
    assert len(Rising.values) == number > 0
    assert [path.name for path in (tmp_path / 'stopped').glob('best_*')] == best != []


@pytest.mark.parametrize('cfg', [dict(by_epoch=True, max_epochs=2), dict(by_epoch=False, max_iters=6, val_interval=3)])
@pytest.mark.parametrize('fails', [1, 2])
def test_killed_in_a_validation(cfg, fails, tmp_path, monkeypatch):
    """Checkpoints are saved before it, without a note that a signal has left."""
    monkeypatch.setattr(Rising, 'values', [])
    checkpoint = dict(BEST['default_hooks__checkpoint'], by_epoch=cfg['by_epoch'], interval=1 if cfg['by_epoch'] else 3)
    options = {**BEST, 'train_cfg': cfg, 'default_hooks__checkpoint': checkpoint}
    train(tmp_path / 'whole', **options)
    best = [path.name for path in (tmp_path / 'whole').glob('best_*')]
    assert len(Rising.values) == 2
    Rising.values.clear()
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        evaluate = Rising.compute_metrics
        killed.setattr(Rising, 'compute_metrics', lambda *args: _die_at(fails, evaluate, *args))
        train(tmp_path / 'killed', **options)
    assert len(Rising.values) == fails - 1
    train(tmp_path / 'killed', 'auto', **options)
    assert len(Rising.values) == 2
    assert [path.name for path in (tmp_path / 'killed').glob('best_*')] == best != []
    train(tmp_path / 'killed', 'auto', **options)  # nothing is left to do
    assert len(Rising.values) == 2
    Rising.values.clear()
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):  # another training in the same folder
        killed.setattr(Rising, 'compute_metrics', lambda *args: _die_at(fails, evaluate, *args))
        train(tmp_path / 'killed', **options)
    train(tmp_path / 'killed', 'auto', **options)
    assert len(Rising.values) == 2


def test_killed_again_after_a_validation_that_was_made_up(tmp_path, monkeypatch):
    """Its result was the best so far: it is in the checkpoint, or another best one would be left beside it."""
    monkeypatch.setattr(Rising, 'values', [])
    options = {**BEST, 'train_cfg': dict(by_epoch=True, max_epochs=2)}
    options['default_hooks__checkpoint'] = dict(options['default_hooks__checkpoint'], by_epoch=True, interval=1)
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(Rising, 'compute_metrics', lambda *args: _die_at(1, None, *args))
        train(tmp_path, **options)
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(ToyModel, 'train_step', _die)
        train(tmp_path, 'auto', **options)
    assert len(Rising.values) == 1
    (best,) = tmp_path.glob('best_*')
    state = torch.load(tmp_path / 'epoch_1.pth', weights_only=True)['message_hub']['runtime_info']
    assert Path(state['best_ckpt']).name == best.name
    train(tmp_path, 'auto', **options)
    assert len(Rising.values) == 2 and len([*tmp_path.glob('best_*')]) == 1


def _die(*args, **kwargs):
    raise KeyboardInterrupt


def _die_at(number, evaluate, metric, results):
    if len(metric.values) == number - 1:
        raise KeyboardInterrupt
    return evaluate(metric, results)


@pytest.mark.parametrize('by_epoch', [True, False])
def test_stopped_twice_in_one_validation(by_epoch, tmp_path, monkeypatch):
    monkeypatch.setattr(Rising, 'values', [])
    cfg = dict(by_epoch=True, max_epochs=3) if by_epoch else dict(by_epoch=False, max_iters=18, val_interval=6)
    options = {**BEST, 'train_cfg': cfg, 'exact_resume': True}
    whole = train(tmp_path / 'whole', **options)
    stop(tmp_path / 'stopped', send=dict(val_iteration=1), **options)
    stop(tmp_path / 'stopped', 'auto', send=dict(val_iteration=1), **options)
    resumed = train(tmp_path / 'stopped', 'auto', **options)
    assert resumed.places == whole.places[6:] and resumed.indices == whole.indices[6:]


def test_a_loop_of_ones_own(tmp_path, capfd):
    """It repeats the epoch, as in mmengine, and the line says so."""
    options = dict(train_cfg=dict(type='OwnLoop', max_epochs=2), exact_resume=False)
    stop(tmp_path, send=dict(iteration=2), **options)
    assert '--resume repeats the epoch' in capfd.readouterr().out
    assert train(tmp_path, 'auto', **options).places[0] == (0, 0, 3)


@LOOPS.register_module()
class OwnLoop(EpochBasedTrainLoop):
    """As mmengine's."""


def test_checkpoints_elsewhere(tmp_path):
    """Of a training that was stopped in its last validation, the note names them at the end."""
    hook = dict(type='CheckpointHook', by_epoch=True, interval=1, out_dir=str(tmp_path / 'elsewhere'))
    options = dict(train_cfg=dict(by_epoch=True, max_epochs=1), default_hooks__checkpoint=hook)
    (tmp_path / 'elsewhere/work').mkdir(parents=True)
    (tmp_path / 'elsewhere/work/.epoch_0.pth.x.partial').touch()  # of a process that was killed
    stop(tmp_path / 'work', send=dict(val_iteration=1), **options)
    train(tmp_path / 'work', 'auto', **options)
    path = tmp_path / 'elsewhere/work/epoch_1.pth'
    assert find_whole_checkpoint(str(tmp_path / 'work')) == str(path)
    assert [file.name for file in path.parent.iterdir()] == ['epoch_1.pth']


def test_accumulated_gradients(tmp_path):
    options = dict(optim_wrapper__accumulative_counts=4)
    train(tmp_path / 'whole', **options)
    stop(tmp_path / 'stopped', send=dict(iteration=4), **options)
    resumed = train(tmp_path / 'stopped', tmp_path / 'stopped/interrupted.pth', **options)
    assert resumed.places[0] == (1, 2, 8)
    assert same_training(tmp_path / 'whole/iter_12.pth', tmp_path / 'stopped/iter_12.pth')


@HOOKS.register_module()
class SignalWorkers(Hook):
    """Sends the workers what a group of processes gets."""

    sent = 0

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        """Send."""
        if runner.iter < 2:
            return  # a worker may only just have started, and both have after two batches
        workers = [str(worker.pid) for worker in multiprocessing.active_children()]
        for name in ('TERM', 'INT'):
            subprocess.run(['kill', f'-{name}', *workers], check=True)
        SignalWorkers.sent += len(workers)


def test_workers_go_on(whole, tmp_path):
    hooks = [dict(type='EMAHook', momentum=0.3, update_buffers=True), dict(type='SignalWorkers'), dict(type='Recorder')]
    workers = dict(train_dataloader__num_workers=2, train_dataloader__persistent_workers=True)
    train(tmp_path, custom_hooks=hooks, **workers)
    assert SignalWorkers.sent >= 10 * 2
    for worker in multiprocessing.active_children():
        worker.terminate()  # as at the end of the process
        worker.join(10)
        assert not worker.is_alive()
    assert same_training(tmp_path / 'iter_12.pth', whole / 'iter_12.pth')


def test_a_second_signal_ends_at_once(monkeypatch):
    sent, now = [], [100.0]
    monkeypatch.setattr(stop_hook.os, 'kill', lambda *args: sent.append(args))
    monkeypatch.setattr(stop_hook.time, 'monotonic', lambda: now[0])
    requests = stop_hook._Requests()
    requests.listen()
    receive = signal.getsignal(signal.SIGTERM)
    receive(signal.SIGTERM, None)
    now[0] += 1.5
    receive(signal.SIGINT, None)  # the same request, through a launcher
    assert requests.received == signal.SIGTERM and not sent
    now[0] += 1
    receive(signal.SIGINT, None)
    assert sent == [(os.getpid(), signal.SIGINT)] and signal.getsignal(signal.SIGINT) == signal.SIG_DFL


def test_the_launcher_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv(STOPPED_FILE, str(tmp_path / 'stopped'))
    stop(tmp_path / 'work', send=dict(iteration=1))
    assert (tmp_path / 'stopped').exists()


def test_a_full_disk(tmp_path, monkeypatch):
    """What was there before stays, and the last line says what happened."""
    train(tmp_path, train_cfg=dict(by_epoch=True, max_epochs=1))
    before = torch.load(tmp_path / 'iter_6.pth', weights_only=True)

    def full(path, content):
        raise UserError(f'{path} was not written: No space left on device')

    monkeypatch.setattr('mmlavit.utils.local_files.write_file', full)
    with pytest.raises(UserError, match='interrupted.pth was not written'):
        train(tmp_path, tmp_path / 'iter_6.pth', send=dict(iteration=6))
    assert same(torch.load(find_whole_checkpoint(str(tmp_path)), weights_only=True)['state_dict'], before['state_dict'])
