"""The weights that come with the repository: named by their content, described, and loaded through each toolbox."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.apis import ModelHub, get_model
from safetensors import safe_open

from mmlavit.analysis.complexity import model_complexity
from mmlavit.apis import export
from mmlavit.errors import UserError
from mmlavit.models import LessAttention
from mmlavit.utils.checkpoint import find_checkpoint, find_shards, find_weights
from mmlavit.utils.config_files import load_config
from mmlavit.utils.toolbox import load_toolbox

ROOT = Path(__file__).parents[1]
NAMES = sorted(
    {re.sub(r'-[0-9a-f]{8}(-\d{5}-of-\d{5})?$', '', file.stem) for file in (ROOT / 'weights').glob('*.safetensors')}
)
CONFIGS = {
    'mmpretrain': 'handwritten/classify_lavit_nano.py',
    'mmdet': 'handwritten/retinanet_lavit_nano.py',
    'mmseg': 'handwritten/upernet_lavit_nano.py',
}


def files_of(name):
    return find_shards(find_weights(name))


def read(name):
    tensors = {}
    for file in files_of(name):
        with safe_open(file, framework='pt') as opened:
            tensors.update((key, opened.get_tensor(key)) for key in opened.keys())  # noqa: SIM118
            meta = json.loads(opened.metadata()['meta'])
    return tensors, meta


def test_there_are_some():
    assert NAMES
    assert {path.name for path in (ROOT / 'weights').iterdir()} == {
        'README.md',
        'metafile.yml',
        *(file.name for name in NAMES for file in files_of(name)),
    }


@pytest.mark.parametrize('name', NAMES)
def test_files(name):
    files = files_of(name)
    digits = hashlib.sha256(b''.join(file.read_bytes() for file in files)).hexdigest()[:8]
    assert all(file.stem.startswith(f'{name}-{digits}') for file in files)
    assert all(file.stat().st_size <= 8_000_000 for file in files)
    card = (ROOT / 'weights/README.md').read_text()
    assert files[0].name in card and f'mmlavit://{name}' in card
    tensors, meta = read(name)
    assert all(value.isfinite().all() for value in tensors.values())
    assert not any(word in meta['cfg'] for word in ('/tmp', '/home', '/work', '/root'))


@pytest.mark.parametrize('scope', CONFIGS)
@pytest.mark.parametrize('name', NAMES)
def test_they_load(name, scope):
    """Every tensor of the backbone, by the option that the card names."""
    cfg = load_config(str(ROOT / 'configs' / CONFIGS[scope]))
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=f'mmlavit://{name}', prefix='backbone.')
    if 'tiny' in name:
        cfg.model.backbone.arch = 'tiny'
    if 'vanilla' in name:
        cfg.model.backbone.update(num_va_layers=(2, 2, 3, 2), attention_residual=False)
    load_toolbox(scope)
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(cfg.model)
    model.init_weights()
    loaded = model.backbone.state_dict()
    given = {key.removeprefix('backbone.'): v for key, v in read(name)[0].items() if key.startswith('backbone.')}
    assert given.keys() == loaded.keys()
    assert all(torch.equal(loaded[key], value.to(loaded[key].dtype)) for key, value in given.items())
    assert any(isinstance(module, LessAttention) for module in model.modules()) == ('vanilla' not in name)


@pytest.mark.parametrize('name', NAMES)
def test_they_are_in_the_model_index(name, monkeypatch):
    """With figures of the card, and as mmpretrain finds them."""
    monkeypatch.setattr(ModelHub, '_models_dict', {})
    ModelHub.register_model_index(ROOT / 'model-index.yml', config_prefix=ROOT)
    entry = ModelHub.get(name)
    [result] = entry.results
    top1, top5 = result.metrics['Top 1 Accuracy'], result.metrics['Top 5 Accuracy']
    [row] = [
        line for line in (ROOT / 'weights/README.md').read_text().splitlines() if f'| `mmlavit://{name}` |' in line
    ]
    assert f'| {top1} / {top5} % |' in row and files_of(name)[0].name in row
    complexity, _ = model_complexity(entry.config, (128, 128))
    assert entry.metadata.data['Parameters'] == complexity.params
    assert entry.metadata.data['FLOPs'] == complexity.macs

    model = get_model(name, pretrained=True)
    assert all(torch.equal(model.state_dict()[key], value.float()) for key, value in read(name)[0].items())


@pytest.mark.parametrize('name', NAMES)
def test_they_are_exported_by_name(name, tmp_path, monkeypatch):
    """With the name and the content of the file, which the graph keeps."""
    files = files_of(name)
    written = {}
    monkeypatch.setattr(export, 'write_onnx', lambda *args, **kwargs: written.update(kwargs))
    export.export_onnx(str(ROOT / f'configs/experiments/{name}.py'), f'mmlavit://{name}', tmp_path / 'model.onnx')
    metadata = json.loads(written['metadata']['mmlavit'])
    assert metadata['checkpoint'] == files[0].name
    assert metadata['checkpoint_sha256'] == hashlib.sha256(b''.join(map(Path.read_bytes, files))).hexdigest()


def test_where_checkpoints_are(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    (tmp_path / 'hub/checkpoints').mkdir(parents=True)
    for file in (tmp_path / 'mine.pth', tmp_path / 'hub/checkpoints/r50-0a1b2c3d.pth'):
        file.write_bytes(b'')
    assert find_checkpoint('~/mine.pth') == find_checkpoint(tmp_path / 'mine.pth') == tmp_path / 'mine.pth'
    fetched = find_checkpoint('https://example.org/models/r50-0a1b2c3d.pth')  # before, and not again
    assert fetched == tmp_path / 'hub/checkpoints/r50-0a1b2c3d.pth'
    with pytest.raises(UserError, match='expected a file, mmlavit://NAME or https://'):
        find_checkpoint('torchvision://resnet50')
    with pytest.raises(UserError, match='yours.pth does not exist'):
        find_checkpoint('~/yours.pth')
    with pytest.raises(UserError, match='mmlavit://lavit_x is unknown'):
        find_checkpoint('mmlavit://lavit_x')
