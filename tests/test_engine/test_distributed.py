"""What a CPU lacks, and the process launchers."""

import os
import signal
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import OPTIM_WRAPPERS
from torch import multiprocessing
from torch.distributed import DistNetworkError, DistStoreError
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from mmlavit.engine import distributed, launch
from mmlavit.engine.distributed import adapt_to_cpu, local_rank, require_launcher, require_strategy
from mmlavit.engine.hooks.collect_hook import CollectHook, _needs_folder, find_shared_folder
from mmlavit.engine.hooks.stop_hook import STOPPED_FILE
from mmlavit.errors import UserError


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    """Forget a launcher that started the tests, and what ours leaves."""
    names = ('PROCID', 'LOCALID', 'NTASKS', 'JOB_ID', 'NODELIST', 'STEP_ID', 'STEP_NODELIST', 'STEP_NUM_TASKS')
    slurm = [f'SLURM_{name}' for name in names]
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'MASTER_PORT', STOPPED_FILE, *slurm):
        monkeypatch.setenv(name, '')  # so that what a test sets is undone
        monkeypatch.delenv(name)


def make_config(**entries) -> Config:
    model = dict(
        type='EncoderDecoder',
        decode_head=dict(norm_cfg=dict(type='SyncBN', requires_grad=True)),
        auxiliary_head=[dict(norm_cfg=dict(type='MMSyncBN')), dict(norm_cfg=dict(type='GN'))],
    )
    loaders = dict(train_dataloader=dict(pin_memory=True), val_dataloader=None)
    return Config(dict(model=model, optim_wrapper=dict(type='OptimWrapper'), **loaders, **entries))


def test_sync_bn_becomes_bn():
    cfg = make_config(launcher='none', sync_bn='torch')
    adapted, notes = adapt_to_cpu(cfg, training=True)
    assert adapted.model.decode_head.norm_cfg == dict(type='BN', requires_grad=True)
    assert [head.norm_cfg.type for head in adapted.model.auxiliary_head] == ['BN', 'GN']
    assert 'sync_bn' not in adapted
    assert not adapted.train_dataloader.pin_memory
    assert len(notes) == 1 and 'SyncBN' in notes[0]
    assert cfg.model.decode_head.norm_cfg.type == 'SyncBN'  # a copy was changed
    assert 'model_wrapper_cfg' not in adapted


def test_model_wrapper():
    adapted, notes = adapt_to_cpu(make_config(launcher='pytorch', find_unused_parameters=True), training=True)
    assert adapted.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=True,
        device_ids=None,
    )
    assert any('gloo' in note for note in notes)
    own = dict(type='Own', static_graph=True)
    adapted, _ = adapt_to_cpu(make_config(launcher='slurm', model_wrapper_cfg=own), training=True)
    assert adapted.model_wrapper_cfg == dict(own, device_ids=None)


def test_flexible_runner():
    """Of its strategies only DDP needs the wrapper, and its own arguments stay."""
    flexible = dict(launcher='pytorch', runner_type='FlexibleRunner')
    adapted, _ = adapt_to_cpu(make_config(**flexible), training=True)
    wrapper = dict(type='MMDistributedDataParallel', broadcast_buffers=False, find_unused_parameters=False)
    assert adapted.strategy == dict(type='DDPStrategy', model_wrapper=dict(wrapper, device_ids=None))
    own = dict(type='FSDPStrategy', model_wrapper=dict(use_orig_params=True))
    adapted, _ = adapt_to_cpu(make_config(**flexible, strategy=own), training=True)
    assert adapted.strategy == own
    assert 'model_wrapper_cfg' not in adapted


FSDP = dict(type='mmlavit.engine.strategy.ResumableFSDPStrategy')
DEEPSPEED = dict(type='mmlavit.engine.strategy.SafeDeepSpeedStrategy')


@pytest.mark.parametrize(
    ('strategy', 'entries', 'message'),
    [
        (FSDP, dict(runner_type='Runner'), "only read with runner_type='FlexibleRunner'"),
        (None, dict(sync_bn='torch', compile=True), 'does not read compile, sync_bn'),
        (FSDP, dict(launcher='none'), 'ResumableFSDPStrategy shards over processes; start it with'),
        (FSDP, dict(optim_wrapper=dict(clip_grad=dict(max_norm=5))), 'clip by the norm of its own shard'),
        (DEEPSPEED, dict(optim_wrapper=dict(clip_grad=None)), 'set strategy.gradient_clipping'),
        (dict(type='DeepSpeedStrategy'), {}, 'runs code that may be in a checkpoint; set strategy.type='),
        (FSDP, dict(custom_hooks=[dict(type='A'), dict(type='EMAHook')]), 'EMAHook does not work with Res'),
        (None, dict(custom_hooks=[dict(type='EMAHook')]), 'EMAHook does not work with FlexibleRunner'),
        (DEEPSPEED, dict(auto_scale_lr=dict(enable=True)), 'does not scale the learning rate'),
    ],
)
def test_strategy_that_cannot_work(monkeypatch, strategy, entries, message):
    monkeypatch.setattr(metadata, 'version', lambda name: '0.16.9')
    cfg = make_config(launcher='pytorch', runner_type='FlexibleRunner', strategy=strategy)
    cfg.merge_from_dict(entries)
    with pytest.raises(UserError, match=message):
        require_strategy(cfg)


def test_strategy_that_works(monkeypatch):
    require_strategy(make_config(sync_bn='torch'))
    flexible = dict(launcher='pytorch', runner_type='FlexibleRunner')
    require_strategy(make_config(**flexible))
    cfg = make_config(**flexible, strategy=FSDP)
    cfg.optim_wrapper.clip_grad = None
    require_strategy(cfg)
    monkeypatch.setattr(metadata, 'version', lambda name: '0.18.9')
    require_strategy(make_config(**flexible, strategy=DEEPSPEED))


@pytest.mark.parametrize(
    ('version', 'message'),
    [(None, 'deepspeed is not installed; .*pip install'), ('0.19.0', 'deepspeed 0.19.0 is too new for mmengine; ')],
)
def test_deepspeed_is_missing(monkeypatch, version, message):
    def find(name):
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, 'version', find)
    with pytest.raises(UserError, match=message):
        require_strategy(make_config(launcher='slurm', runner_type='FlexibleRunner', strategy=DEEPSPEED))


def test_nothing_to_adapt():
    cfg = make_config()
    cfg.model = dict(type='A', norm_cfg=dict(type='LN'))
    assert adapt_to_cpu(cfg, training=True)[1] == []


def test_mixed_precision_is_bfloat16():
    cfg = make_config()
    cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    adapted, notes = adapt_to_cpu(cfg, training=True)
    assert 'No GPU: mixed precision is bfloat16, without a scale of the loss.' in notes
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = OPTIM_WRAPPERS.build(dict(adapted.optim_wrapper, optimizer=optimizer))
    with wrapper.optim_context(model):
        assert model(torch.ones(1, 2)).dtype == torch.bfloat16
    assert model(torch.ones(1, 2)).dtype == torch.float32


def test_float16_needs_a_gpu():
    cfg = make_config()
    cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype='float16')
    with pytest.raises(UserError, match='float16 needs a GPU'):
        adapt_to_cpu(cfg, training=True)
    adapt_to_cpu(cfg, training=False)  # a test builds no optimizer


def test_local_rank(monkeypatch):
    assert local_rank('none') == 0
    assert local_rank('pytorch', default=3) == 3
    monkeypatch.setenv('LOCAL_RANK', '1')
    monkeypatch.setenv('SLURM_LOCALID', '2')
    assert local_rank('pytorch') == 1
    assert local_rank('slurm') == 2
    assert local_rank('none') == 0


@pytest.mark.parametrize(
    ('launcher', 'script', 'variable'),
    [('pytorch', 'dist_train.sh', 'RANK'), ('slurm', 'slurm_train.sh', 'SLURM_PROCID')],
)
def test_launcher_was_not_used(launcher, script, variable):
    with pytest.raises(UserError, match=rf'{script}.*{variable} is not set'):
        require_launcher(launcher)


def test_torchrun_without_the_option(monkeypatch):
    require_launcher('none')
    for name in ('RANK', 'LOCAL_RANK'):
        monkeypatch.setenv(name, '1')
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(UserError, match='add --launcher pytorch'):
        require_launcher('none')


def test_launcher(monkeypatch):
    require_launcher('none')
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    require_launcher('pytorch', rank=1)
    assert local_rank('pytorch') == 1
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    with pytest.raises(UserError, match='2 processes on this machine but 1 GPU'):
        require_launcher('pytorch')


def test_slurm_jobs_have_ports_of_their_own(monkeypatch):
    for name, value in dict(PROCID='0', LOCALID='0', NTASKS='2', JOB_ID='123456').items():
        monkeypatch.setenv(f'SLURM_{name}', value)
    require_launcher('slurm')
    assert os.environ['MASTER_PORT'] == '23456'
    monkeypatch.setenv('MASTER_PORT', '1234')
    require_launcher('slurm')
    assert os.environ['MASTER_PORT'] == '1234'


def test_slurm_steps_meet_at_places_of_their_own(monkeypatch):
    for name, value in dict(PROCID='0', LOCALID='0', NTASKS='2', JOB_ID='7', NODELIST='n[1-2]').items():
        monkeypatch.setenv(f'SLURM_{name}', value)
    found = []
    for step in range(2):
        monkeypatch.setenv('SLURM_STEP_ID', str(step))
        monkeypatch.setenv('SLURM_STEP_NODELIST', f'n{step + 1}')
        monkeypatch.delenv('MASTER_PORT', raising=False)
        require_launcher('slurm')
        found.append((os.environ['MASTER_PORT'], os.environ['SLURM_NODELIST']))
    assert found[0][0] != found[1][0] and [nodes for _, nodes in found] == ['n1', 'n2']
    monkeypatch.delenv('MASTER_PORT')


def test_slurm_task_without_the_gpu_of_its_number(monkeypatch):
    for name, value in dict(PROCID='3', LOCALID='3', NTASKS='4', JOB_ID='7').items():
        monkeypatch.setenv(f'SLURM_{name}', value)
    monkeypatch.setenv('MASTER_PORT', '1234')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    require_launcher('slurm')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    with pytest.raises(UserError, match=r'process 3 of this node sees 1 GPU\(s\) only'):
        require_launcher('slurm')


def test_srun_without_the_option(monkeypatch):
    monkeypatch.setenv('SLURM_STEP_NUM_TASKS', '8')
    monkeypatch.setenv('SLURM_PROCID', '0')
    said = []
    monkeypatch.setattr(distributed, 'print_log', lambda text, *args: said.append(text))
    require_launcher('none')  # perhaps an interactive shell
    assert not said
    monkeypatch.setenv('SLURM_PROCID', '3')
    require_launcher('none')
    assert 'For one run of all of them, add --launcher slurm' in said[0]


def look_for_folders(rank, port, root):
    """Both have the same work dir, or one each; the current folder is one each."""
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE='2')
    torch.distributed.init_process_group('gloo')
    own = Path(root, str(rank))
    own.mkdir()
    assert find_shared_folder([root, str(own)]) == root
    assert find_shared_folder([str(own), root]) == root
    assert list(own.iterdir()) == []
    with pytest.raises(UserError, match='need a folder that all processes see'):
        find_shared_folder([str(own), str(own)])
    torch.distributed.destroy_process_group()


def test_a_folder_that_all_processes_see(tmp_path, free_port):
    multiprocessing.start_processes(look_for_folders, (free_port, str(tmp_path)), nprocs=2, start_method='fork')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['0', '1']


@pytest.mark.parametrize(
    ('evaluator', 'needed'),
    [
        (None, False),
        (dict(type='Accuracy'), True),
        ([dict(type='Accuracy'), dict(type='CocoMetric', collect_device='gpu')], True),
        (dict(type='Accuracy', collect_device='gpu'), False),
        (dict(type='Accuracy', collect_dir='there'), False),
        (dict(type='Evaluator', metrics=[dict(type='Accuracy', collect_device='gpu')]), False),
    ],
)
def test_who_needs_a_folder(evaluator, needed):
    assert _needs_folder(evaluator) == needed


def test_each_metric_has_a_folder_each_time():
    hook = CollectHook('train')
    metrics = [SimpleNamespace(collect_device='cpu', collect_dir=None) for _ in range(2)]
    metrics += [
        SimpleNamespace(collect_device='gpu', collect_dir=None),
        SimpleNamespace(collect_device='cpu', collect_dir='mine'),
    ]
    runner = SimpleNamespace(val_loop=SimpleNamespace(evaluator=SimpleNamespace(metrics=metrics)))
    hook.before_val(runner)  # one process
    assert [metric.collect_dir for metric in metrics] == [None, None, None, 'mine']
    hook._prefix = '/work_dir/.dist_test'
    seen = []
    for _ in range(2):
        hook.before_val(runner)
        seen += [metric.collect_dir for metric in metrics[:2]]
    assert len(set(seen)) == 4 and all(folder.startswith('/work_dir/.dist_test_') for folder in seen)
    assert [metric.collect_dir for metric in metrics[2:]] == [None, 'mine']


def test_threads(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(launch.os, 'sched_getaffinity', lambda _: set(range(8)), raising=False)
    assert [launch.threads_per_process(n) for n in ('1', '2', '3', '100', 'auto')] == [8, 4, 2, 1, 1]
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert launch.threads_per_process('1') == 1


@pytest.mark.parametrize(
    ('exitcode', 'returned', 'said'),
    [
        (2, 2, ''),  # a mistake of the user: the process has said so
        (75, 75, ''),  # stopped by a signal, the same
        (1, 1, 'process 1 failed with exit code 1'),
        (-9, 137, 'process 1 was ended by SIGKILL (out of memory?)'),
    ],
)
def test_failed_process(monkeypatch, capsys, exitcode, returned, said):
    def fail(args):
        failure = ProcessFailure(local_rank=1, pid=7, exitcode=exitcode, error_file='')
        raise ChildFailedError('train.py', {1: failure})

    monkeypatch.setattr(launch.run, 'run', fail)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    assert launch.main(['--nproc_per_node=2', 'train.py']) == returned
    error = capsys.readouterr().err
    assert said in error
    assert error.count('\n') == bool(said)


@pytest.mark.parametrize(('saved', 'returned', 'said'), [(True, 75, ''), (False, 143, 'error: ended by SIGTERM\n')])
def test_the_launcher_gets_a_signal(monkeypatch, capsys, saved, returned, said):
    """torch passes it on, and raises when the processes have ended."""

    def end(args):
        if saved:
            Path(os.environ[STOPPED_FILE]).touch()
        raise SignalException('', signal.SIGTERM)

    monkeypatch.setattr(launch.run, 'run', end)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    assert launch.main(['--nproc_per_node=2', 'train.py']) == returned
    assert capsys.readouterr().err == said


@pytest.mark.parametrize('error', [DistNetworkError('first\nsecond'), DistStoreError('first\nsecond')])
@pytest.mark.parametrize(
    ('nodes', 'said'),
    [('1', 'is the port taken?'), ('3', 'start the same command on 3 nodes, with NODE_RANK=0 at MASTER_ADDR')],
)
def test_no_rendezvous(monkeypatch, capsys, error, nodes, said):
    def fail(args):
        raise error

    monkeypatch.setattr(launch.run, 'run', fail)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    where = ['--master_addr=10.0.0.1', '--master_port=1234']
    assert launch.main([f'--nnodes={nodes}', '--node_rank=0', *where, 'train.py']) == 2
    out, error = capsys.readouterr()
    assert error.startswith('error: no rendezvous at 10.0.0.1:1234 (first); ') and said in error
    assert error.count('\n') == 1
    assert out == ('node 0 of 3 meets the others at 10.0.0.1:1234\n' if nodes == '3' else '')
