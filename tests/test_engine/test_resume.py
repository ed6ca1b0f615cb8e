"""Training goes on from a whole checkpoint, whatever is in the folder."""

import copy
import os
import shutil

import pytest
import torch
import toy_training
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmlavit.engine.hooks import WholeCheckpointHook
from mmlavit.engine.resume import INTERRUPTED, find_whole_checkpoint, has_begun, is_whole, remove_interrupted
from mmlavit.errors import UserError


class Toy(BaseModel):
    """One weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x, mode):
        """The loss of training."""
        return dict(loss=(self.weight * x).square().mean())


class Data(torch.utils.data.Dataset):
    """Two numbers."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return dict(x=torch.tensor([float(index + 1)]))


def train(work_dir, epochs, resume=False, **checkpoint):
    runner = Runner(
        Toy(),
        work_dir=str(work_dir),
        experiment_name=f'{work_dir}-{epochs}-{resume}-{os.urandom(4).hex()}',
        train_dataloader=dict(
            dataset=Data(), batch_size=1, sampler=dict(type='DefaultSampler'), collate_fn=dict(type='default_collate')
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, **checkpoint)),
        resume=bool(resume),
        load_from=resume or None,
        cfg=Config(),
    )
    runner.train()
    return runner


def checkpoints(folder):
    return sorted(file.name for file in folder.glob('*.pth'))


def test_the_hook_stands_for_mmengines():
    assert HOOKS.get('CheckpointHook') is WholeCheckpointHook


@pytest.mark.parametrize('limit', [-1, 1, 2])
def test_what_is_kept_is_what_mmengine_keeps(tmp_path, limit, monkeypatch):
    train(tmp_path / 'ours', 4, max_keep_ckpts=limit)
    monkeypatch.setitem(HOOKS._module_dict, 'CheckpointHook', CheckpointHook)
    train(tmp_path / 'theirs', 4, max_keep_ckpts=limit)
    kept = checkpoints(tmp_path / 'ours')
    assert kept == checkpoints(tmp_path / 'theirs') and len(kept) == (4 if limit < 0 else limit)


def test_the_old_one_is_there_until_the_new_one_is(tmp_path, monkeypatch):
    seen = []
    save = Runner.save_checkpoint

    def watch(runner, *args, **kwargs):
        seen.append(checkpoints(tmp_path))
        save(runner, *args, **kwargs)

    monkeypatch.setattr(Runner, 'save_checkpoint', watch)
    train(tmp_path, 3, max_keep_ckpts=1)
    assert seen == [[], ['epoch_1.pth'], ['epoch_2.pth']] and checkpoints(tmp_path) == ['epoch_3.pth']


def test_what_was_not_deleted_is_deleted_when_resumed(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(WholeCheckpointHook, '_delete', lambda self, path: None)  # as if it had ended before
        train(tmp_path, 2, max_keep_ckpts=1)
    assert checkpoints(tmp_path) == ['epoch_1.pth', 'epoch_2.pth']
    train(tmp_path, 3, resume=find_whole_checkpoint(str(tmp_path)), max_keep_ckpts=1)
    assert checkpoints(tmp_path) == ['epoch_3.pth']


@pytest.mark.parametrize('several', [False, True])
def test_the_best_one_is_there_until_the_new_one_is(tmp_path, monkeypatch, several):
    monkeypatch.setattr(toy_training.Rising, 'values', [])
    seen, save, options = [], Runner.save_checkpoint, copy.deepcopy(toy_training.BEST)
    if several:
        options['default_hooks__checkpoint'].update(save_best=['score', 'count'], rule='greater')
        options['val_evaluator'] = [dict(type='Rising'), dict(type='ToyMetric')]

    def watch(runner, out_dir, filename, *args, **kwargs):
        seen.append((filename, [name for name in checkpoints(tmp_path) if name.startswith('best_score')]))
        save(runner, out_dir, filename, *args, **kwargs)

    monkeypatch.setattr(Runner, 'save_checkpoint', watch)
    toy_training.train(tmp_path, **options)
    assert ('best_score_epoch_2.pth', ['best_score_epoch_1.pth']) in seen
    best = ['best_count_epoch_1.pth'] * several + ['best_score_epoch_2.pth']
    assert checkpoints(tmp_path) == [*best, 'epoch_2.pth']


def test_a_folder_that_was_copied(tmp_path, monkeypatch):
    """Nothing is read from or deleted in the original."""
    monkeypatch.setattr(toy_training.Rising, 'values', [])
    first = {**toy_training.BEST, 'train_cfg': dict(by_epoch=True, max_epochs=1)}
    toy_training.train(tmp_path / 'a', **first)
    shutil.copytree(tmp_path / 'a', tmp_path / 'b')
    assert find_whole_checkpoint(str(tmp_path / 'b')) == str(tmp_path / 'b/epoch_1.pth')
    toy_training.train(tmp_path / 'b', 'auto', **toy_training.BEST)
    assert checkpoints(tmp_path / 'a') == ['best_score_epoch_1.pth', 'epoch_1.pth']
    assert checkpoints(tmp_path / 'b') == ['best_score_epoch_2.pth', 'epoch_2.pth']


def test_resumed_in_another_folder(tmp_path, monkeypatch):
    """Of two results, one is not better there, so that there is no file of it to be published."""
    monkeypatch.setattr(toy_training.Rising, 'values', [])
    options = copy.deepcopy(toy_training.BEST)
    options['default_hooks__checkpoint'].update(save_best=['score', 'count'], published_keys=['state_dict'])
    options['val_evaluator'] = [dict(type='Rising'), dict(type='ToyMetric')]
    toy_training.train(tmp_path / 'a', **{**options, 'train_cfg': dict(by_epoch=True, max_epochs=1)})
    toy_training.train(tmp_path / 'b', tmp_path / 'a/epoch_1.pth', **options)
    assert [name.partition('-')[0] for name in checkpoints(tmp_path / 'b') if 'best' in name] == [
        'best_score_epoch_2',
        'best_score_epoch_2.pth',
    ]


@pytest.mark.parametrize('kind', [CheckpointHook, 'mmengine.CheckpointHook', 'mmengine.hooks.CheckpointHook'])
def test_the_hook_by_its_class_or_path(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(toy_training.Rising, 'values', [])
    options = copy.deepcopy(toy_training.BEST)
    options['default_hooks__checkpoint'].update(type=kind)
    built, prepare = [], WholeCheckpointHook.before_train
    monkeypatch.setattr(
        WholeCheckpointHook, 'before_train', lambda self, runner: (built.append(self), prepare(self, runner))
    )
    toy_training.train(tmp_path, **options)
    assert len(built) == 1


def damage(path):
    path.write_bytes(path.read_bytes()[:-100])


def test_the_newest_whole_one(tmp_path):
    train(tmp_path, 3)
    for i in (1, 2, 3):
        os.utime(tmp_path / f'epoch_{i}.pth', (i, i))
    found = lambda: find_whole_checkpoint(str(tmp_path))  # noqa: E731
    assert found() == str(tmp_path / 'epoch_3.pth')
    damage(tmp_path / 'epoch_3.pth')
    assert found() == str(tmp_path / 'epoch_2.pth')
    content = bytearray((tmp_path / 'epoch_2.pth').read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    (tmp_path / 'epoch_2.pth').write_bytes(content)
    assert found() == str(tmp_path / 'epoch_1.pth')
    (tmp_path / 'epoch_3.pth').unlink()
    (tmp_path / 'last_checkpoint').write_text('')  # as a process leaves it that ends while it writes
    assert found() == str(tmp_path / 'epoch_1.pth')
    damage(tmp_path / 'epoch_1.pth')
    with pytest.raises(UserError, match='no checkpoint in .* is whole .*; name another with --resume FILE, or'):
        found()


@pytest.mark.parametrize('epochs', [1, 2])
def test_a_folder_that_was_moved(tmp_path, epochs):
    """`last_checkpoint` has the place where it was written."""
    train(tmp_path / 'old place', epochs)
    (tmp_path / 'old place').rename(tmp_path / 'new place')
    assert find_whole_checkpoint(str(tmp_path / 'new place')) == str(tmp_path / f'new place/epoch_{epochs}.pth')


def test_checkpoints_in_another_folder(tmp_path):
    """CheckpointHook has an out_dir."""
    train(tmp_path / 'run', 3, out_dir=str(tmp_path / 'elsewhere'))
    folder = tmp_path / 'elsewhere/run'
    for i in (1, 2, 3):
        os.utime(folder / f'epoch_{i}.pth', (i, i))
    found = lambda: find_whole_checkpoint(str(tmp_path / 'run'))  # noqa: E731
    assert found() == str(folder / 'epoch_3.pth')
    damage(folder / 'epoch_3.pth')
    assert found() == str(folder / 'epoch_2.pth')
    shutil.copy(folder / 'epoch_1.pth', tmp_path / 'run' / INTERRUPTED)  # which is always here, and newer
    assert found() == str(tmp_path / 'run' / INTERRUPTED)


def test_an_interruption_of_deepspeed(tmp_path):
    """Its checkpoints are folders."""
    (tmp_path / INTERRUPTED / 'mp_rank_00').mkdir(parents=True)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_2.pth'))
    remove_interrupted(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ['last_checkpoint']


def test_an_object_storage_is_left_to_mmengine(tmp_path):
    (tmp_path / 'last_checkpoint').write_text('s3://bucket/run/epoch_1.pth')
    assert find_whole_checkpoint(str(tmp_path)) is None
    assert has_begun(str(tmp_path)) and not has_begun(str(tmp_path / 'new'))


def test_nothing_to_resume_from(tmp_path):
    assert find_whole_checkpoint(str(tmp_path)) is None
    assert find_whole_checkpoint(str(tmp_path / 'nowhere')) is None
    (tmp_path / 'iter_8.pth').mkdir()  # DeepSpeed's
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_8.pth'))
    assert find_whole_checkpoint(str(tmp_path)) is None


def test_where_training_goes_on(tmp_path):
    whole = train(tmp_path / 'a', 4).model.weight.item()
    train(tmp_path / 'b', 3)
    damage(tmp_path / 'b/epoch_3.pth')
    resumed = train(tmp_path / 'b', 4, resume=find_whole_checkpoint(str(tmp_path / 'b')))
    assert resumed.model.weight.item() == pytest.approx(whole, rel=1e-6)


def test_other_files_are_not_whole(tmp_path):
    (tmp_path / 'a.pth').write_text('text')
    assert not is_whole(tmp_path / 'a.pth') and not is_whole(tmp_path / 'b.pth')


def test_bits_of_the_directory(tmp_path):
    """Some make the file look encrypted, or packed by an unknown method. What is called whole can be read."""
    torch.save(dict(a=torch.ones(3)), tmp_path / 'a.pth')
    content = bytearray((tmp_path / 'a.pth').read_bytes())
    start, refused = content.index(b'PK\x01\x02'), 0
    for place in range(start, start + 46):
        for bit in (1, 8, 64):
            content[place] ^= bit
            (tmp_path / 'b.pth').write_bytes(content)
            if is_whole(tmp_path / 'b.pth'):  # such as a bit of the time
                assert torch.load(tmp_path / 'b.pth', weights_only=True)['a'].tolist() == [1, 1, 1]
            else:
                refused += 1
            content[place] ^= bit
    assert is_whole(tmp_path / 'a.pth') and refused > 20


def test_an_interruption_in_the_last_validation_is_forgotten(tmp_path, capfd):
    """The last epoch was saved before the validation; then last_checkpoint names what the interruption has left."""
    train(tmp_path, 2)
    note = tmp_path / 'last_checkpoint'
    (tmp_path / INTERRUPTED).write_bytes((tmp_path / 'epoch_2.pth').read_bytes())
    note.write_text(str(tmp_path / INTERRUPTED))
    remove_interrupted(str(tmp_path))
    assert not (tmp_path / INTERRUPTED).exists()
    assert note.read_text() == find_whole_checkpoint(str(tmp_path)) == str(tmp_path / 'epoch_2.pth')
    assert 'is missing' not in capfd.readouterr().out


def test_of_other_checkpoints_nothing_is_forgotten(tmp_path):
    train(tmp_path, 1)
    before = (tmp_path / 'last_checkpoint').read_text()
    remove_interrupted(str(tmp_path))
    assert (tmp_path / 'last_checkpoint').read_text() == before
    (tmp_path / 'epoch_1.pth').unlink()
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / INTERRUPTED))
    remove_interrupted(str(tmp_path))
    assert find_whole_checkpoint(str(tmp_path)) is None
