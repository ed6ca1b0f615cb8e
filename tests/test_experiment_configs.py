"""The configs of the experiments: each builds, and the twins differ in their attention alone."""

from pathlib import Path

import pytest
from mmengine.registry import MODELS, DefaultScope

from mmlavit.models import LessAttention
from mmlavit.utils.config_files import load_config
from mmlavit.utils.toolbox import load_toolbox

ROOT = Path(__file__).parents[1] / 'configs'
CONFIGS = sorted(path.name for path in (ROOT / 'experiments').glob('*.py'))


def build(path):
    cfg = load_config(str(path))
    load_toolbox(cfg.default_scope)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


def test_every_config_is_described():
    text = (ROOT / 'experiments/README.md').read_text()
    assert CONFIGS
    assert all(name in text or '_vanilla_nano_' in name for name in CONFIGS)


@pytest.mark.parametrize('name', [name for name in CONFIGS if '_lavit_' in name])
def test_students_have_less_attention(name):
    layers = sum(isinstance(module, LessAttention) for module in build(ROOT / 'experiments' / name).modules())
    assert layers == (11 if '_deep_' in name else 4 if '_tiny_' in name else 5)


@pytest.mark.parametrize('name', [name for name in CONFIGS if '_vanilla_' in name])
def test_twins_differ_in_their_attention_alone(name):
    other = ROOT / 'experiments' / name.replace('lavit_vanilla_', 'lavit_').replace('_vanilla_', '_lavit_')
    if not other.exists():
        other = ROOT / 'handwritten' / name.replace('_vanilla_nano_handwritten', '_lavit_nano')
    twin, student = build(ROOT / 'experiments' / name), build(other)
    assert not any(isinstance(module, LessAttention) for module in twin.modules())
    shapes, wanted = ({k: v.shape for k, v in model.state_dict().items()} for model in (twin, student))
    different = {key for key in shapes.keys() | wanted.keys() if shapes.get(key) != wanted.get(key)}
    assert all('.attn.' in key or '.residual.' in key for key in different)
