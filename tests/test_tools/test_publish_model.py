"""tools/model_converters/publish_model.py on a checkpoint that a training with averaged weights wrote."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.runner import Runner, load_checkpoint
from tool_runs import call_tool

from mmlavit import LaViT
from mmlavit.errors import UserError
from mmlavit.utils import checkpoint as checkpoints

ROOT = Path(__file__).parents[2]
SUFFIXES = ('.pth', '.safetensors')
KEPT = {'dataset_meta', 'epoch', 'iter', 'mmengine_version', 'cfg', 'mmlavit_version'}


class Toy(BaseModel):
    """A backbone that learns to give small features."""

    def __init__(self):
        super().__init__()
        self.backbone = LaViT(arch='nano', out_indices=(0, 1))

    def forward(self, inputs, mode):
        """Give the loss of training, in any mode."""
        return dict(loss=sum(features.square().mean() for features in self.backbone(inputs)))


class Data(torch.utils.data.Dataset):
    """Two pictures of noise, with the classes that a checkpoint takes over."""

    metainfo = dict(classes=('a', 'b'), palette=np.array([[1, 2, 3], [4, 5, 6]]))

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return dict(inputs=torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(index)))


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A training of two steps: its runner, with the weights it ended with, and its checkpoint."""
    folder = tmp_path_factory.mktemp('publish')
    runner = Runner(
        Toy(),
        work_dir=str(folder),
        experiment_name=str(folder),
        train_dataloader=dict(
            dataset=Data(), batch_size=1, sampler=dict(type='DefaultSampler'), collate_fn=dict(type='default_collate')
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.5)),
        custom_hooks=[dict(type='EMAHook', momentum=0.1)],
        cfg=Config(dict(work_dir=str(folder), load_from=None, data_root='data', lr=0.5)),
    )
    runner.train()
    return runner, folder / 'epoch_1.pth'


@pytest.fixture
def publish(monkeypatch):
    """Run the script in this process."""

    def run(*args):
        call_tool(monkeypatch, 'model_converters/publish_model.py', *args)

    return run


def averaged(runner):
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, EMAHook))
    return hook.ema_model.module.state_dict()


def assert_same(published, expected):
    assert published.keys() == expected.keys()
    assert all(torch.equal(published[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    ('options', 'raw', 'kind'),
    [
        ([], False, 'averaged (EMA) weights'),
        (['--weights', 'ema'], False, 'averaged (EMA) weights'),
        (['--weights', 'raw'], True, 'raw weights'),
    ],
)
def test_weights(options, raw, kind, trained, publish, tmp_path, capsys):
    runner, checkpoint = trained
    key = 'backbone.stages.0.norm.weight'
    assert not torch.equal(runner.model.state_dict()[key], averaged(runner)[key])
    publish(checkpoint, tmp_path / 'toy.pth', *options)
    (file,) = tmp_path.iterdir()
    assert file.name == f'toy-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth'
    assert file.stat().st_size < checkpoint.stat().st_size
    said = capsys.readouterr().out
    assert said.startswith(f'{file}: ') and kind in said
    assert 'removed: ' in said and all(name in said for name in ('ema_state_dict', 'message_hub', 'optimizer'))

    # Without mmlavit and mmengine: torch alone must find it safe.
    code = f'import torch; print(sorted(torch.load({str(file)!r}, weights_only=True)))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout == "['meta', 'state_dict']\n", done.stderr
    published = torch.load(file, weights_only=True)
    assert_same(published['state_dict'], runner.model.state_dict() if raw else averaged(runner))

    # What init_cfg.checkpoint does with it.
    backbone = LaViT(
        arch='nano', out_indices=(0, 1), init_cfg=dict(type='Pretrained', checkpoint=str(file), prefix='backbone.')
    )
    backbone.init_weights()
    expected = {f'backbone.{key}': value for key, value in backbone.state_dict().items()}
    assert_same(published['state_dict'], expected)


def test_half_precision(trained, publish, tmp_path, capsys):
    runner, checkpoint = trained
    publish(checkpoint, tmp_path / 'toy.safetensors', '--half')
    (file,) = tmp_path.iterdir()
    published = safetensors.torch.load_file(file)
    expected = averaged(runner)
    assert_same(published, {k: v.half() if v.is_floating_point() else v for k, v in expected.items()})
    runner.model.load_state_dict(published)  # into single precision
    key = 'backbone.stages.0.norm.weight'
    torch.testing.assert_close(runner.model.state_dict()[key], expected[key], atol=0, rtol=1e-3)

    counted = {'a.weight': torch.ones(2), 'a.num_batches_tracked': torch.tensor(70001)}  # a BatchNorm's
    torch.save(dict(state_dict=counted), tmp_path / 'counted.pth')
    publish(tmp_path / 'counted.pth', tmp_path / 'count.safetensors', '--half')
    [file] = tmp_path.glob('count-*.safetensors')
    assert_same(safetensors.torch.load_file(file), {**counted, 'a.weight': torch.ones(2).half()})

    torch.save(dict(state_dict={'a.weight': torch.tensor([70000.0])}), tmp_path / 'large.pth')
    with pytest.raises(SystemExit):
        publish(tmp_path / 'large.pth', tmp_path / 'large.safetensors', '--half')
    assert 'a.weight has values that half precision cannot hold' in capsys.readouterr().err


def test_meta(trained, publish, tmp_path):
    runner, checkpoint = trained
    publish(checkpoint, tmp_path / 'toy.pth')
    (file,) = tmp_path.iterdir()
    meta = torch.load(file, weights_only=True)['meta']
    assert meta.keys() == KEPT
    assert meta['dataset_meta'] == dict(classes=('a', 'b'), palette=[[1, 2, 3], [4, 5, 6]])
    assert Config.fromstring(meta['cfg'], '.py').to_dict() == dict(data_root='data', lr=0.5)
    assert runner.work_dir.encode() not in file.read_bytes()


@pytest.mark.parametrize(
    ('meta', 'classes'), [(dict(), ['cat', 'dog']), (dict(dataset_meta=dict(classes=('a',))), ('a',))]
)
def test_classes_of_the_config(meta, classes, trained, publish, tmp_path):
    """Where the training data had no names, as a dataset that reads a list of numbers."""
    cfg = Config(dict(val_dataloader=dict(dataset=dict(type='D', metainfo=dict(classes=['cat', 'dog'])))))
    content = dict(meta=dict(meta, cfg=cfg.pretty_text), state_dict=dict(w=torch.ones(1)))
    torch.save(content, tmp_path / 'some.pth')
    publish(tmp_path / 'some.pth', tmp_path / 'out.pth')
    (file,) = tmp_path.glob('out-*.pth')
    assert torch.load(file, weights_only=True)['meta']['dataset_meta']['classes'] == classes


def test_paths_in_the_config_are_listed(publish, tmp_path, capsys):
    cfg = "work_dir = '/home/me/runs'\ndata = dict(root='/home/me/coco', other='~/x', file='a/b', slash='/')\n"
    torch.save(dict(state_dict={'a': torch.ones(1)}, meta=dict(cfg=cfg)), tmp_path / 'a.pth')
    publish(tmp_path / 'a.pth', tmp_path / 'b.pth')
    assert 'the config in it names /home/me/coco, ~/x; use relative paths' in capsys.readouterr().out
    torch.save(dict(state_dict={'a': torch.ones(1)}), tmp_path / 'a.pth')
    publish(tmp_path / 'a.pth', tmp_path / 'b.pth')
    assert 'the config in it' not in capsys.readouterr().out


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_hash_depends_on_the_content_alone(suffix, trained, publish, tmp_path):
    _, checkpoint = trained
    for name in ('a', 'another_name', 'a_third'):
        publish(checkpoint, tmp_path / f'{name}{suffix}')
    hashes = {path.stem.rsplit('-', 1)[1] for path in tmp_path.iterdir()}
    assert len(hashes) == 1
    publish(checkpoint, tmp_path / f'raw{suffix}', '--weights', 'raw')
    (raw,) = tmp_path.glob('raw-*')
    assert hashes.pop() not in raw.name


def test_safetensors(trained, publish, tmp_path):
    """The same as in the other format, read by the library alone and by what reads checkpoints here."""
    runner, checkpoint = trained
    publish(checkpoint, tmp_path / 'toy.pth')
    publish(checkpoint, tmp_path / 'toy.safetensors')
    (pickled,), (file,) = tmp_path.glob('*.pth'), tmp_path.glob('*.safetensors')
    assert file.name == f'toy-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.safetensors'
    assert runner.work_dir.encode() not in file.read_bytes()
    expected = torch.load(pickled, weights_only=True)
    assert_same(safetensors.torch.load_file(file), expected['state_dict'])
    with safetensors.safe_open(file, 'pt') as content:
        meta = json.loads(content.metadata()['meta'])
    assert meta == json.loads(json.dumps(expected['meta'])) and meta.keys() == KEPT
    model = Toy()
    loaded = load_checkpoint(model, str(file))
    assert loaded['meta'] == meta
    assert_same(model.state_dict(), expected['state_dict'])
    backbone = LaViT(
        arch='nano', out_indices=(0, 1), init_cfg=dict(type='Pretrained', checkpoint=str(file), prefix='backbone.')
    )
    backbone.init_weights()
    assert_same(expected['state_dict'], {f'backbone.{key}': value for key, value in backbone.state_dict().items()})
    # And once more, from one format to the other.
    publish(file, tmp_path / 'again.pth')
    (again,) = tmp_path.glob('again-*.pth')
    assert torch.load(again, weights_only=True)['meta'] == meta


def test_plain_weights(publish, tmp_path):
    """A converted file, without a training around it."""
    weights = {'backbone.a': torch.ones(2)}
    torch.save(weights, tmp_path / 'plain.pth')
    publish(tmp_path / 'plain.pth', tmp_path / 'out.pth')
    (file,) = tmp_path.glob('out-*.pth')
    assert_same(torch.load(file, weights_only=True)['state_dict'], weights)


def test_weights_by_name(publish, tmp_path, capsys):
    """Those of the repository, published again."""
    publish('mmlavit://lavit_nano_in275', tmp_path / 'out.safetensors')
    (file,) = tmp_path.glob('out-*.safetensors')
    assert f'4.4 -> {file.stat().st_size / 1e6:.1f} MB' in capsys.readouterr().out


def test_shards(trained, publish, tmp_path, capsys):
    """In several files, all the same is there by the name of any of them."""
    _, file = trained
    publish(file, tmp_path / 'whole.safetensors')
    publish(file, tmp_path / 'parts.safetensors', '--shard-size', '0.3')
    shards = sorted(tmp_path.glob('parts-*.safetensors'))
    said = capsys.readouterr().out
    assert len(shards) > 2 and all(f'{shard}' in said for shard in shards)
    assert all(shard.stat().st_size < 3.1e5 for shard in shards)
    digits = hashlib.sha256(b''.join(shard.read_bytes() for shard in shards)).hexdigest()[:8]
    assert [shard.name for shard in shards] == [
        f'parts-{digits}-{i:05}-of-{len(shards):05}.safetensors' for i in range(1, len(shards) + 1)
    ]
    (whole,) = tmp_path.glob('whole-*.safetensors')
    expected = checkpoints.load_checkpoint(whole)
    for shard in (shards[0], shards[-1]):
        found = checkpoints.load_checkpoint(shard)
        assert found['meta'] == expected['meta']
        assert_same(found['state_dict'], expected['state_dict'])
    shards[1].unlink()
    with pytest.raises(UserError, match=f'is one of several files, but .*{shards[1].name} does not exist; put them'):
        checkpoints.load_checkpoint(shards[0])
    with pytest.raises(SystemExit):
        publish(file, tmp_path / 'parts.pth', '--shard-size', '0.3')
    assert '--shard-size must be positive, and is for names that end in .safetensors' in capsys.readouterr().err


class Harmful:
    """Would run code when it is loaded."""

    def __reduce__(self):
        return print, ('code from a checkpoint',)


@pytest.mark.parametrize(
    ('checkpoint', 'options', 'message'),
    [
        ('no.pth', [], 'checkpoint no.pth does not exist'),
        ('notes.pth', [], 'notes.pth cannot be read as a checkpoint (another format)'),
        ('harmful.pth', [], 'harmful.pth was not loaded: it asks for print, which'),
        ('empty.pth', [], 'empty.pth has no weights'),
        ('diverged.pth', [], 'a has values that are not finite: the training diverged'),
        ('plain.pth', ['--weights', 'ema'], 'the checkpoint has no averaged (EMA) weights'),
    ],
)
def test_mistakes(checkpoint, options, message, publish, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path('notes.pth').write_text('no checkpoint')
    torch.save(dict(state_dict={'a': torch.ones(1)}, hook=Harmful()), 'harmful.pth')
    torch.save(dict(meta={}), 'empty.pth')
    torch.save(dict(state_dict={'a': torch.ones(1)}), 'plain.pth')
    torch.save(dict(state_dict={'a': torch.full((1,), torch.nan)}), 'diverged.pth')
    with pytest.raises(SystemExit) as stopped:
        publish(checkpoint, 'out.pth', *options)
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert said.err.startswith(f'error: {message}') and said.err.count('\n') == 1
    assert 'code from a checkpoint' not in said.out
    assert not list(tmp_path.glob('out*'))


@pytest.mark.parametrize(
    ('out', 'message'),
    [('out', 'out: expected a name that ends in .pth or .safetensors'), ('no/out.pth', 'the folder no does not')],
)
def test_where_it_goes(out, message, publish, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        publish('any.pth', out)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f'error: {message}')
