"""The trunk against timm's PVTv2 through converted random weights."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmlavit import LaViT
from mmlavit.converters.pvt_v2 import PVT_V2_EPS, convert_pvt_v2
from mmlavit.errors import ConfigError

timm = pytest.importorskip('timm')

ROOT = Path(__file__).parents[2]

B2 = dict(
    embed_dims=(64, 128, 320, 512), num_heads=(1, 2, 5, 8), depths=(3, 4, 6, 3), num_va_layers=(3, 4, 6, 3),
    mlp_ratios=(8, 8, 4, 4), patch_kernels=(7, 3, 3, 3), norm_eps=PVT_V2_EPS,
)  # fmt: skip


@pytest.fixture(scope='module')
def pvt():
    torch.manual_seed(0)
    model = timm.create_model('pvt_v2_b2', features_only=True).eval()
    for parameter in model.parameters():  # the zero biases and unit norms of an untrained model would prove little
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def weights(pvt):
    """State dict under timm's own names; ``features_only`` writes ``stages_0`` for ``stages.0``."""
    return {re.sub(r'^stages_(\d)', r'stages.\1', key): value for key, value in pvt.state_dict().items()}


def official_names(state):
    """The same weights as the official repository names them."""
    renamed = {}
    for key, value in state.items():
        key = re.sub(r'^patch_embed\.', 'patch_embed1.', key)
        key = re.sub(r'^stages\.(\d)\.downsample', lambda m: f'patch_embed{int(m[1]) + 1}', key)
        key = re.sub(r'^stages\.(\d)\.blocks', lambda m: f'block{int(m[1]) + 1}', key)
        key = re.sub(r'^stages\.(\d)\.norm', lambda m: f'norm{int(m[1]) + 1}', key)
        renamed[key.replace('.mlp.dwconv.', '.mlp.dwconv.dwconv.')] = value
    return renamed


@pytest.mark.parametrize('size', [(224, 224), (96, 160), (256, 288)], ids=str)
@pytest.mark.parametrize('names', [dict, official_names], ids=['timm', 'official'])
def test_outputs_equal_timm(pvt, names, size):
    model = LaViT(B2, attention_residual=False).eval()
    model.load_state_dict(convert_pvt_v2(names(weights(pvt))), strict=True)
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        for out, expected in zip(model(x), pvt(x)):
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_less_attention_layers_take_the_values(pvt):
    num_va_layers = (1, 1, 2, 1)
    model = LaViT(B2, num_va_layers=num_va_layers)
    state = weights(pvt)
    missing, unexpected = model.load_state_dict(convert_pvt_v2(state, num_va_layers), strict=False)
    assert not unexpected
    assert all('.delta_' in key or '.residual.' in key for key in missing)
    expected = state['stages.2.blocks.3.attn.kv.weight'][320:]
    assert torch.equal(model.stages[2].blocks[3].attn.v.weight, expected)


def test_an_unknown_key_is_named():
    with pytest.raises(ConfigError, match="'stages.0.blocks.0.attn.pool' is not a key"):
        convert_pvt_v2({'stages.0.blocks.0.attn.pool': torch.zeros(1)})


@pytest.fixture
def tool(monkeypatch, tmp_path):
    """Run the script in this process and in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['pvt_v2_to_lavit.py', *map(str, args)])
        runpy.run_path(str(ROOT / 'tools/model_converters/pvt_v2_to_lavit.py'), run_name='__main__')

    return run


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_tool(pvt, suffix, tool, capsys):
    """From a file in either format to the backbone that a config starts from."""
    state = {key: value.clone() for key, value in weights(pvt).items()}
    if suffix == '.pth':
        torch.save(state, 'pvt.pth')
    else:
        save_file(state, 'pvt.safetensors')
    tool(f'pvt{suffix}', 'out.pth')
    expected = convert_pvt_v2(state)
    assert capsys.readouterr().out == f'out.pth: {len(expected)} tensors\n'
    model = LaViT(
        B2, attention_residual=False, init_cfg=dict(type='Pretrained', checkpoint='out.pth', prefix='backbone.')
    )
    model.init_weights()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['no.pth', 'out.pth'], 'checkpoint no.pth does not exist'),
        (['other.pth', 'out.pth'], "'a' is not a key of PVTv2"),
        (['notes.pth', 'out.pth'], 'notes.pth cannot be read as a checkpoint'),
        (['other.pth', 'no/out.pth'], 'the folder no does not exist'),
    ],
)
def test_mistakes_of_the_tool(args, message, tool, capsys):
    torch.save({'a': torch.ones(1)}, 'other.pth')
    Path('notes.pth').write_text('no checkpoint')
    with pytest.raises(SystemExit) as stopped:
        tool(*args)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: {message}') and error.count('\n') == 1
    assert not Path('out.pth').exists()
