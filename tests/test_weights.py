"""The weights that come with the repository: named by their content, described, and loaded through each toolbox."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from safetensors import safe_open

from mmlavit.models import LessAttention
from mmlavit.utils.arguments import load_config
from mmlavit.utils.checkpoint import find_weights
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
    assert {path.name for path in (ROOT / 'weights').iterdir()} == {'README.md', *(file.name for file in FILES)}


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
