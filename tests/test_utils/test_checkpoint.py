"""Checkpoints are looked for before anything is built, and read without running code that may be in them."""

import http.server
import io
import json
import os
import pickle
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import payload
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.fileio import LocalBackend
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint
from safetensors.torch import save_file

from mmlavit.errors import UserError
from mmlavit.utils import checkpoint as module
from mmlavit.utils.checkpoint import (
    find_checkpoint,
    find_shards,
    load_checkpoint,
    load_from_local,
    require_checkpoint,
    require_checkpoints,
    trust_checkpoints,
)
from mmlavit.utils.config_files import load_config

TRUST, REFUSE = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
WEIGHTS = {'a': torch.arange(6.0).view(2, 3)}


@pytest.fixture(autouse=True)
def nothing_is_trusted(monkeypatch):
    monkeypatch.setenv(TRUST, '')
    monkeypatch.setenv(REFUSE, '')


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'checkpoint.pth'


@pytest.fixture
def trace(tmp_path):
    """A file that is there once code of a checkpoint has run."""
    return tmp_path / 'trace'


def load(path, map_location=None):
    """Load a file, or what is at an address, by mmengine's own function."""
    return CheckpointLoader.load_checkpoint(str(path), map_location)


def save_and_load(content, path):
    torch.save(content, path)
    return load(path)


# What mmengine itself writes.


def test_message_hub(path):
    hub = MessageHub.get_instance('test_checkpoint')
    hub.update_scalar('train/loss', 2.0)
    hub.update_scalar('train/loss', 1.0)
    hub.update_info('best_score', np.float64(0.5))
    loaded = save_and_load(hub.state_dict(), path)
    history = loaded['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer)
    assert history.mean() == 1.5
    assert history.statistics('min') == 1.0
    assert loaded['runtime_info']['best_score'] == 0.5


KINDS = [np.bool_, np.int8, np.int32, np.int64, np.uint8, np.uint16, np.float16, np.float32, np.float64, np.str_]


@pytest.mark.parametrize('kind', KINDS)
def test_numpy(kind, path):
    loaded = save_and_load({'number': kind(1), 'none': np.empty(0, kind), 'array': np.ones((2, 1)).astype(kind)}, path)
    assert loaded['number'] == kind(1)
    assert loaded['array'].tolist() == np.ones((2, 1)).astype(kind).tolist()
    assert loaded['array'].dtype == np.ones((2, 1)).astype(kind).dtype


def test_numpy_of_another_generation(path):
    """NumPy 1 and 2 write the same objects under different module names."""
    here, other = b'numpy._core.', b'numpy.core.'
    if np.__version__ < '2':
        here, other = other, here

    class Renaming:
        """A pickle module whose pickles name the modules of the other generation."""

        @staticmethod
        class Pickler:
            def __init__(self, file, protocol):
                self.file, self.protocol = file, protocol

            def dump(self, content):
                self.file.write(pickle.dumps(content, self.protocol).replace(here, other))

    torch.save({'number': np.float64(1), 'array': np.ones(2)}, path, pickle_module=Renaming)
    assert other in path.read_bytes()
    loaded = load(path)
    assert loaded['number'] == 1 and loaded['array'].tolist() == [1, 1]


def test_meta_of_a_data_set_from_a_config(path):
    loaded = save_and_load(dict(dataset_meta=ConfigDict(classes=('a',), label_map=dict(a=1))), path)
    assert loaded['dataset_meta'] == dict(classes=('a',), label_map=dict(a=1))


def test_a_plain_load_knows_these_types_too(path):
    """Importing the package is enough."""
    torch.save(HistoryBuffer(), path)
    assert isinstance(torch.load(path, weights_only=True), HistoryBuffer)


def test_after_a_load_of_mmengine_itself(path):
    """The maintained builds allow their types for each load, and forbid them afterwards."""
    if not hasattr(mmengine_checkpoint, '_safe_torch_load'):
        pytest.skip('an official release')
    torch.save(HistoryBuffer(), path)
    mmengine_checkpoint._safe_torch_load(path)
    assert isinstance(load(path), HistoryBuffer)


# What could run code.


def assert_refused(path, trace, what):
    with pytest.raises(UserError) as refused:
        load(path)
    message = str(refused.value)
    assert message.startswith(f'{path} was not loaded: it asks for {what}, ')
    assert '--trust-checkpoint' in message and '\n' not in message
    assert not trace.exists()


@pytest.mark.parametrize(
    'options',
    [{}, dict(_use_new_zipfile_serialization=False), dict(pickle_protocol=3)],
    ids=['zip', 'before torch 1.6', 'protocol 3'],
)
def test_refused_by_name(options, path, trace):
    payload.write(path, dict(state_dict=WEIGHTS), trace, **options)
    assert_refused(path, trace, f'{os.system.__module__}.system')
    trust_checkpoints()
    assert load(path)['state_dict'].keys() == WEIGHTS.keys()
    assert trace.exists()


@pytest.mark.parametrize('protocol', [0, 2, 4, pickle.HIGHEST_PROTOCOL])
def test_a_bare_pickle(protocol, path, trace):
    path.write_bytes(pickle.dumps(payload.Payload(trace), protocol))
    unknown = 'something that torch cannot check'
    assert_refused(path, trace, unknown if protocol > 2 else f'{os.system.__module__}.system')
    trust_checkpoints()
    with pytest.raises(Exception, match=r'magic|file'):  # the code runs before torch notices that it is no checkpoint
        load(path)
    assert trace.exists()


@pytest.mark.parametrize('protocol', [4, pickle.HIGHEST_PROTOCOL])
def test_another_protocol(protocol, path, trace):
    payload.write(path, {}, trace, pickle_protocol=protocol)
    assert_refused(path, trace, 'something that torch cannot check')


def test_a_tar_archive(path, trace):
    """In this form torch before 2.6 unpickles anything, also where weights only are asked for (CVE-2025-32434)."""
    with tarfile.open(path, 'w') as file:
        for name, numbers in (('storages', [0, []]), ('tensors', [0]), ('pickle', [payload.Payload(trace)])):
            data = b''.join(pickle.dumps(number, 2) for number in numbers)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))
    assert_refused(path, trace, 'something that torch cannot check')
    trust_checkpoints()
    load(path)
    assert trace.exists()


def test_getattr_alone(path, trace):
    payload.write_with_getattr_alone(path, trace)
    assert_refused(path, trace, 'getattr')


@pytest.mark.skipif(
    not hasattr(mmengine_checkpoint, '_safe_torch_load') or torch.__version__ < '2.6',
    reason='an official release, or a torch of which mmengine expects nothing',
)
def test_getattr_alone_is_enough_for_mmengine(path, trace, monkeypatch):
    """So the maintained builds run code even where torch is told to read weights only: why there are our loaders."""
    payload.write_with_getattr_alone(path, trace)
    monkeypatch.setattr('torch._weights_only_unpickler._marked_safe_globals_set', set())
    monkeypatch.setenv(REFUSE, '1')
    with pytest.raises(TypeError):  # afterwards, as the list is none any more
        mmengine_checkpoint._safe_torch_load(path)
    assert trace.exists()


class Access:
    """Asks for an attribute when it is read."""

    def __init__(self, owner, name):
        self.arguments = (owner, name)

    def __reduce__(self):
        return getattr, self.arguments


@pytest.mark.parametrize(
    ('owner', 'name'), [(HistoryBuffer, '__init__'), (np.ndarray, 'tofile'), (torch.Tensor, 'mean')]
)
def test_attributes_of_other_objects_stay_out_of_reach(owner, name, path, trace):
    torch.save(Access(owner, name), path)
    assert_refused(path, trace, 'getattr')


def test_the_text_of_a_config(path):
    """mmengine runs it when it resumes, and leaves it alone otherwise."""
    meta = dict(config='import os', cfg='a = 1', epoch=1)
    assert save_and_load(dict(meta=dict(meta)), path) == dict(meta=dict(cfg='a = 1', epoch=1))
    trust_checkpoints()
    assert load(path) == dict(meta=meta)


def test_trusted_files_are_named(path, trace, monkeypatch):
    said = []
    monkeypatch.setattr(module, 'print_log', lambda message, *_: said.append(message))
    trust_checkpoints()
    save_and_load(WEIGHTS, path)
    assert not said
    payload.write(path, WEIGHTS, trace)
    load(path)
    assert said == [f'{path} asks for {os.system.__module__}.system; loaded, since checkpoints are trusted']


def test_the_environment_may_forbid_trust(monkeypatch):
    monkeypatch.setenv(REFUSE, '1')
    with pytest.raises(UserError, match=f'while {REFUSE} is set'):
        trust_checkpoints()
    assert os.environ[TRUST] == ''


# Files that are none.


def cut(data):
    return data[: len(data) // 2]


def saved(**options):
    content = io.BytesIO()
    torch.save(WEIGHTS, content, **options)
    return content.getvalue()


def safetensors(tmp_path):
    save_file(WEIGHTS, tmp_path / 'weights')
    return (tmp_path / 'weights').read_bytes()


def archive():
    content = io.BytesIO()
    with zipfile.ZipFile(content, 'w') as file:
        file.writestr('notes.txt', 'no checkpoint')
    return content.getvalue()


def script():
    content = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Identity()), content)
    return content.getvalue()


DAMAGED = {
    'empty': lambda _: b'',
    'text': lambda _: b'no checkpoint',
    'cut': lambda _: cut(saved()),
    'cut, before torch 1.6': lambda _: cut(saved(_use_new_zipfile_serialization=False)),
    'cut safetensors': lambda folder: cut(safetensors(folder)),
    'cut header': lambda folder: safetensors(folder)[:20],
    'archive': lambda _: archive(),
    'TorchScript': lambda _: script(),
    'escapes': lambda _: b'\x9f\0\0\0\0\0\0\0{\x1b[31m',
}


if torch.__version__ < '2.6':
    del DAMAGED['TorchScript']  # torch reads it, and mmengine finds no weights in it


@pytest.mark.parametrize('name', DAMAGED)
@pytest.mark.parametrize('trusted', [False, True])
def test_damaged(name, trusted, path, tmp_path):
    path.write_bytes(DAMAGED[name](tmp_path))
    if trusted:
        trust_checkpoints()
    with pytest.raises(UserError) as refused:
        load(path)
    message = str(refused.value)
    assert message.startswith(f'{path} cannot be read as a checkpoint (') and message.isprintable()
    assert len(message) < len(str(path)) + 350


def test_missing_file(tmp_path):
    (tmp_path / 'a.pth').touch()
    require_checkpoint(str(tmp_path / 'a.pth'))
    require_checkpoint('https://example.org/a.pth')
    require_checkpoint('torchvision://resnet50')
    with pytest.raises(
        UserError, match='checkpoint nope.pth does not exist; expected a .pth or .safetensors file, rel'
    ):
        require_checkpoint('nope.pth')
    for path, message in ((tmp_path / 'nope.pth', 'does not exist'), (tmp_path, 'is a folder; expected a .pth')):
        with pytest.raises(UserError, match=message):
            load(path)


@pytest.mark.parametrize('content', [[1], {}, dict(meta={}), dict(state_dict={}), dict(state_dict=dict(a=1))])
def test_without_weights(content, path):
    torch.save(content, path)
    with pytest.raises(UserError, match='has no weights; expected'):
        load_checkpoint(str(path))


# safetensors.


def test_safetensors(tmp_path):
    path = tmp_path / 'weights.safetensors'
    save_file(WEIGHTS, path, dict(format='pt', meta='no JSON'))
    for loaded in (load(path), load(path.rename(tmp_path / 'renamed.pth'))):
        assert loaded['meta'] == {} and loaded['state_dict'].keys() == {'a'}
        assert torch.equal(loaded['state_dict']['a'], WEIGHTS['a'])


def test_safetensors_with_meta(tmp_path):
    path = tmp_path / 'weights.safetensors'
    save_file(WEIGHTS, path, dict(meta=json.dumps(dict(dataset_meta=dict(classes=['a'])))))
    assert load_checkpoint(str(path))['meta'] == dict(dataset_meta=dict(classes=['a']))


# Addresses.


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of a folder, and a folder for what is downloaded."""
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    (tmp_path / 'served').mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=tmp_path / 'served')) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f'http://127.0.0.1:{running.server_port}', tmp_path / 'served'
        running.shutdown()


def test_downloads(server, tmp_path, trace):
    address, folder = server
    torch.save(WEIGHTS, folder / 'a.pth')
    save_file(WEIGHTS, folder / 'b.safetensors')
    payload.write(folder / 'c.pth', {}, trace)
    assert torch.equal(load(f'{address}/a.pth')['a'], WEIGHTS['a'])
    assert torch.equal(load(f'{address}/b.safetensors?download=true')['state_dict']['a'], WEIGHTS['a'])
    with pytest.raises(UserError, match=r'hub/checkpoints/\w{8}/c.pth was not loaded'):
        load(f'{address}/c.pth')
    with pytest.raises(UserError, match=f'{address}/d.pth cannot be downloaded .*404'):
        load(f'{address}/d.pth')
    assert not trace.exists()
    (folder / 'a.pth').unlink()
    load(f'{address}/a.pth')  # once is enough
    trust_checkpoints()
    load(f'{address}/c.pth')
    assert trace.exists()


@pytest.mark.parametrize('name', ['a.pth', 'a.safetensors', 'a-0123abcd.pth'])
def test_downloads_that_are_cut_off(server, name):
    """What came of the file is not kept."""
    address, folder = server
    (save_file if name.endswith('s') else torch.save)(dict(a=torch.ones(10_000)), folder / name)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        UserError, match=f'{address}/{name} gave a file that cannot be read as a checkpoint .*; try again'
    ):
        load(f'{address}/{name}')
    (folder / name).write_bytes(whole)
    assert load(f'{address}/{name}')


def test_downloads_by_several_processes(server):
    """As those of a training, each of which reads a teacher."""
    address, folder = server
    save_file(dict(a=torch.ones(300_000)), folder / 'a.safetensors')
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(find_checkpoint, [f'{address}/a.safetensors'] * 4))
    assert len(set(found)) == 1
    assert [path.name for path in found[0].parent.iterdir()] == ['a.safetensors']


@pytest.mark.parametrize('name', ['a', 'a-0123abcd'])
def test_downloads_of_shards(server, name):
    """All of them, by the address of any."""
    address, folder = server
    files = [f'{name}-{i:05}-of-00002.safetensors' for i in (1, 2)]
    for file, key in zip(files, 'ab', strict=True):
        save_file({key: torch.ones(2)}, folder / file)
    assert load(f'{address}/{files[1]}')['state_dict'].keys() == {'a', 'b'}
    (folder / files[0]).unlink()
    load(f'{address}/{files[0]}')  # once is enough
    with pytest.raises(UserError, match='b-00001-of-00002.safetensors cannot be downloaded'):
        load(f'{address}/b-00002-of-00002.safetensors')


def test_names_that_are_of_no_shard():
    for name in (
        'a.safetensors',
        'a-00001-of-00000.safetensors',
        'a-00003-of-00002.safetensors',
        'a-00001-of-00002.pth',
    ):
        assert find_shards(name) == [Path(name)]


def test_shards_in_a_storage():
    with pytest.raises(UserError, match='s3://x/a-00001-of-00002.safetensors is a checkpoint in several files'):
        load('s3://x/a-00001-of-00002.safetensors')


def test_downloads_of_one_name(server):
    address, folder = server
    for name in ('x', 'y'):
        (folder / name).mkdir()
        save_file({name: torch.ones(1)}, folder / name / 'model.safetensors')
        assert load(f'{address}/{name}/model.safetensors')['state_dict'].keys() == {name}
        torch.save({name: torch.ones(1)}, folder / name / 'segformer-b0.pth')  # b0 is no hash
        assert load(f'{address}/{name}/segformer-b0.pth').keys() == {name}
    torch.save(WEIGHTS, folder / 'a-0123abcd.pth')
    load(f'{address}/a-0123abcd.pth')
    assert Path(torch.hub.get_dir(), 'checkpoints/a-0123abcd.pth').is_file()  # where torch itself would look


@pytest.mark.parametrize(
    ('scheme', 'table'),
    [
        ('torchvision', 'get_torchvision_models'),
        ('modelzoo', 'get_torchvision_models'),
        ('open-mmlab', 'get_external_models'),
        ('openmmlab', 'get_external_models'),
        ('mmcls', 'get_mmcls_models'),
    ],
)
def test_short_names(scheme, table, server, trace, monkeypatch):
    address, folder = server
    torch.save({'backbone.a': WEIGHTS['a'], 'head.b': WEIGHTS['a']}, folder / 'a.pth')
    payload.write(folder / 'b.pth', {}, trace)
    known = dict(good=f'{address}/a.pth', evil=f'{address}/b.pth')
    monkeypatch.setattr(mmengine_checkpoint, table, lambda: known)
    loaded = load(f'{scheme}://good')
    assert loaded.keys() == ({'state_dict'} if scheme == 'mmcls' else {'backbone.a', 'head.b'})
    with pytest.raises(UserError, match='was not loaded'):
        load(f'{scheme}://evil')
    with pytest.raises(UserError, match=f'{scheme}://else is not among'):
        load(f'{scheme}://else')
    assert not trace.exists()


@pytest.mark.parametrize('place', ['weights', 'mmlavit/.mim/weights'])
def test_weights_of_the_package(place, tmp_path, monkeypatch):
    """In a clone and in an installation; the name is without the hash."""
    folder = tmp_path / place
    folder.mkdir(parents=True)
    save_file(WEIGHTS, folder / 'lavit_tiny-0123abcd.safetensors')
    monkeypatch.setattr(module, '__file__', str(tmp_path / 'mmlavit/utils/checkpoint.py'))
    assert load('mmlavit://lavit_tiny')['state_dict'].keys() == WEIGHTS.keys()
    require_checkpoint('mmlavit://lavit_tiny')
    with pytest.raises(UserError, match='mmlavit://lavit is unknown; there is lavit_tiny'):
        require_checkpoint('mmlavit://lavit')
    with pytest.raises(UserError, match='mmlavit://lavit is unknown'):
        load('mmlavit://lavit')


def test_short_name_of_a_file(tmp_path, trace, monkeypatch):
    """In the list that a user of mmengine may have."""
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path))
    (tmp_path / 'open_mmlab.json').write_text(json.dumps(dict(own='own.pth')))
    payload.write(tmp_path / 'own.pth', {}, trace)
    with pytest.raises(UserError, match='own.pth was not loaded'):
        load('open-mmlab://own')
    assert not trace.exists()


@pytest.mark.parametrize('address', ['s3://bucket/a.pth', 'petrel://bucket/a.pth', 'cluster:s3://bucket/a.pth'])
def test_ceph(address, path, trace, monkeypatch):
    payload.write(path, {}, trace)
    monkeypatch.setattr(LocalBackend, 'get_local_path', lambda self, _: nullcontext(path))
    monkeypatch.setattr(module, 'get_file_backend', lambda *args, **options: LocalBackend())
    with pytest.raises(UserError, match='was not loaded'):
        load(address)
    assert not trace.exists()


def test_addresses_are_not_looked_for():
    """What a loader knows is no file that is missing."""
    for address in ('open-mmlab://resnet50_caffe', 'torchvision://resnet50', 's3://bucket/a.pth'):
        require_checkpoint(address)
    with pytest.raises(UserError, match='12:00:00/a.pth does not exist'):
        require_checkpoint('2024-01-01_12:00:00/a.pth')
    with pytest.raises(UserError, match='open-mmlab does not exist'):
        require_checkpoint('open-mmlab')


def test_colons_in_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('12:00').mkdir()
    torch.save(dict(state_dict=dict(a=torch.ones(1))), '12:00/a.pth')
    assert load_checkpoint('12:00/a.pth')['state_dict'].keys() == {'a'}


def test_prefix_of_a_wrapper(tmp_path):
    torch.save(dict(state_dict={'module.a': torch.ones(1), 'module.b': torch.ones(1)}), tmp_path / 'a.pth')
    assert load_checkpoint(str(tmp_path / 'a.pth'))['state_dict'].keys() == {'a', 'b'}


def test_every_scheme_is_ours():
    loaders = {loader for prefix, loader in CheckpointLoader._schemes.items()}
    assert {loader.__module__ for loader in loaders} == {module.__name__}
    with pytest.raises(UserError, match='pavi://a cannot be read'):
        load('pavi://a')


# What a config starts from.


def test_checkpoints_of_a_config():
    init = dict(type='Pretrained', checkpoint='backbone.pth', prefix='backbone.')
    cfg = Config(dict(model=dict(backbone=dict(init_cfg=[dict(type='Normal'), init])), load_from=None))
    with pytest.raises(UserError, match='init_cfg.checkpoint backbone.pth'):
        require_checkpoints(cfg)
    cfg.model.backbone.init_cfg[1].checkpoint = None
    require_checkpoints(cfg)
    cfg.load_from = 'whole.pth'
    with pytest.raises(UserError, match='checkpoint whole.pth'):
        require_checkpoints(cfg)


def test_safetensors_cannot_be_resumed(tmp_path):
    path = str(tmp_path / 'weights.safetensors')
    save_file(WEIGHTS, path)
    cfg = Config(dict(model=dict(), load_from=path, resume=False))
    require_checkpoints(cfg)
    cfg.resume = True
    with pytest.raises(UserError, match=f'{path} has weights only'):
        require_checkpoints(cfg)


def test_map_location(path):
    assert save_and_load(WEIGHTS, path)['a'].device.type == 'cpu'
    assert load_from_local(str(path), 'meta')['a'].device.type == 'meta'


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('lavit_nano_in275', 'did you mean mmlavit://lavit_nano_in275[?]'),
        ('weights/lavit_nano_in275.safetensors', 'did you mean mmlavit://lavit_nano_in275[?]'),
        ('first/epoch_1.pht', 'did you mean first/epoch_1.pth[?]'),
    ],
)
def test_what_may_have_been_meant(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'first').mkdir()
    for there in ('epoch_1.pth', 'notes.txt'):
        (tmp_path / 'first' / there).touch()
    with pytest.raises(UserError, match=message):
        require_checkpoint(name)


def test_a_checkpoint_in_the_place_of_a_config():
    for name in ('mmlavit://lavit_nano_in275', 'work_dirs/a/epoch_1.pth'):
        with pytest.raises(UserError, match=f'{name} is a checkpoint, but stands where a config is expected'):
            load_config(name)
