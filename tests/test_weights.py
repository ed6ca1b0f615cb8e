"""The weights that come with the repository: named by their content, described, and loaded through each toolbox."""

import hashlib
import json
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
from mmlavit.utils.arguments import load_config
from mmlavit.utils.checkpoint import find_checkpoint, find_weights
from mmlavit.utils.toolbox import load_toolbox

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / 'weights').glob('*.safetensors'))
CONFIGS = {
    'mmpretrain': 'handwritten/classify_lavit_nano.py',
    'mmdet': 'handwritten/retinanet_lavit_nano.py',
    'mmseg': 'handwritten/upernet_lavit_nano.py',
}


def read(file):
    with safe_open(file, framework='pt') as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return tensors, json.loads(opened.metadata()['meta'])


def test_there_are_some():
    assert FILES
    assert {path.name for path in (ROOT / 'weights').iterdir()} == {
        'README.md',
        'metafile.yml',
        *(file.name for file in FILES),
    }


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_files(file):
    name, _, digits = file.stem.rpartition('-')
    assert hashlib.sha256(file.read_bytes()).hexdigest()[:8] == digits
    assert file.stat().st_size <= 8_000_000
    assert find_weights(name) == file
    card = (ROOT / 'weights/README.md').read_text()
    assert file.name in card and f'mmlavit://{name}' in card
    tensors, meta = read(file)
    assert all(value.isfinite().all() for value in tensors.values())
    assert not any(word in meta['cfg'] for word in ('/tmp', '/home', '/work', '/root'))


@pytest.mark.parametrize('scope', CONFIGS)
@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_they_load(file, scope):
    """Every tensor of the backbone, by the option that the card names."""
    name = file.stem.rpartition('-')[0]
    cfg = load_config(str(ROOT / 'configs' / CONFIGS[scope]))
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=f'mmlavit://{name}', prefix='backbone.')
    if 'vanilla' in name:
        cfg.model.backbone.update(num_va_layers=(2, 2, 3, 2), attention_residual=False)
    load_toolbox(scope)
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(cfg.model)
    model.init_weights()
    loaded = model.backbone.state_dict()
    given = {key.removeprefix('backbone.'): v for key, v in read(file)[0].items() if key.startswith('backbone.')}
    assert given.keys() == loaded.keys()
    assert all(torch.equal(loaded[key], value.to(loaded[key].dtype)) for key, value in given.items())
    assert any(isinstance(module, LessAttention) for module in model.modules()) == ('vanilla' not in name)


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_they_are_in_the_model_index(file, monkeypatch):
    """With figures of the card, and as mmpretrain finds them."""
    name = file.stem.rpartition('-')[0]
    monkeypatch.setattr(ModelHub, '_models_dict', {})
    ModelHub.register_model_index(ROOT / 'model-index.yml', config_prefix=ROOT)
    entry = ModelHub.get(name)
    [result] = entry.results
    top1, top5 = result.metrics['Top 1 Accuracy'], result.metrics['Top 5 Accuracy']
    [row] = [
        line for line in (ROOT / 'weights/README.md').read_text().splitlines() if f'| `mmlavit://{name}` |' in line
    ]
    assert f'| {top1} / {top5} % |' in row and file.name in row
    complexity, _ = model_complexity(entry.config, (128, 128))
    assert entry.metadata.data['Parameters'] == complexity.params
    assert entry.metadata.data['FLOPs'] == complexity.macs

    model = get_model(name, pretrained=True)
    assert all(torch.equal(model.state_dict()[key], value.float()) for key, value in read(file)[0].items())


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_they_are_exported_by_name(file, tmp_path, monkeypatch):
    """With the name and the content of the file, which the graph keeps."""
    name = file.stem.rpartition('-')[0]
    written = {}
    monkeypatch.setattr(export, 'write_onnx', lambda *args, **kwargs: written.update(kwargs))
    export.export_onnx(str(ROOT / f'configs/experiments/{name}.py'), f'mmlavit://{name}', tmp_path / 'model.onnx')
    metadata = json.loads(written['metadata']['mmlavit'])
    assert metadata['checkpoint'] == file.name
    assert metadata['checkpoint_sha256'] == hashlib.sha256(file.read_bytes()).hexdigest()


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
