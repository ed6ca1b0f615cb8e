"""The trunk against timm's PVTv2 through converted random weights."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tool_runs import call_tool
from torch import nn

from mmlavit import LaViT
from mmlavit.converters.pvt_v2 import convert_pvt_v2
from mmlavit.errors import ConfigError
from mmlavit.models.arch import ARCH_ZOO

timm = pytest.importorskip('timm')

ROOT = Path(__file__).parents[2]

DEPTHS = (3, 4, 6, 3)


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


def mmdet_names(state):
    """The same weights as mmdet names and shapes them."""
    renamed = {}
    for source, value in state.items():
        key = source.replace('patch_embed.', 'stages.0.downsample.') if source.startswith('patch_embed.') else source
        key = re.sub(r'^stages\.(\d)\.downsample\.proj', r'layers.\1.0.projection', key)
        key = re.sub(r'^stages\.(\d)\.downsample\.norm', r'layers.\1.0.norm', key)
        key = re.sub(r'^stages\.(\d)\.norm', r'layers.\1.2', key)
        key = re.sub(r'^stages\.(\d)\.blocks', r'layers.\1.1', key).replace('.attn.proj.', '.attn.attn.out_proj.')
        if '.attn.q.' in key:
            other = state[source.replace('.attn.q.', '.attn.kv.')]
            value = torch.cat([value, other])
            key = key.replace('.attn.q.', '.attn.attn.in_proj_')
        elif '.attn.kv.' in key:
            continue
        for number, name in ((0, 'fc1'), (1, 'dwconv'), (4, 'fc2')):
            if f'.mlp.{name}.' in key:
                key = key.replace(f'.mlp.{name}.', f'.ffn.layers.{number}.')
                value = value[:, :, None, None] if value.dim() == 2 else value
        renamed[key] = value
    return renamed


def transformers_names(state):
    """The same weights as transformers names them."""
    renamed = {}
    inner = [
        ('downsample.norm', 'patch_embedding.layer_norm'),
        ('downsample.proj', 'patch_embedding.proj'),
        ('norm1', 'layer_norm_1'),
        ('norm2', 'layer_norm_2'),
        ('.attn.sr.', '.attention.spatial_reduction.'),
        ('.attn.norm.', '.attention.layer_norm.'),
        ('.attn.', '.attention.'),
        ('.q.', '.query.'),
        ('fc1', 'dense1'),
        ('fc2', 'dense2'),
        ('dwconv', 'dwconv.dwconv'),
    ]
    for key, value in state.items():
        key = key.replace('patch_embed.', 'stages.0.downsample.') if key.startswith('patch_embed.') else key
        key = re.sub(r'^stages\.(\d)\.norm', r'stages.\1.layer_norm', key)
        for old, new in inner:
            key = key.replace(old, new)
        key = key.replace('stages.', 'pvt_v2.encoder.layers.', 1)
        if '.kv.' in key:
            for name, part in zip(('key', 'value'), value.chunk(2)):
                renamed[key.replace('.kv.', f'.{name}.')] = part
        else:
            renamed[key] = value
    renamed['classifier.weight'] = torch.zeros(5, 512)
    return renamed


LAYOUTS = {'timm': dict, 'official': official_names, 'mmdet': mmdet_names, 'transformers': transformers_names}


@pytest.mark.parametrize('size', [(224, 224), (96, 160), (256, 288)], ids=str)
@pytest.mark.parametrize('names', LAYOUTS.values(), ids=LAYOUTS.keys())
def test_outputs_equal_timm(pvt, names, size):
    model = LaViT('pvt_v2_b2', num_va_layers=DEPTHS, attention_residual=False).eval()
    model.load_state_dict(convert_pvt_v2(names(weights(pvt))).backbone, strict=True)
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        for out, expected in zip(model(x), pvt(x)):
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', [f'pvt_v2_b{size}' for size in range(6)])
def test_architectures(name):
    """Every size of PVTv2: shapes and epsilons are those of timm."""
    with torch.device('meta'):
        theirs = timm.create_model(name)
        model = LaViT(name, num_va_layers=ARCH_ZOO[name].depths, attention_residual=False)
        found = convert_pvt_v2(theirs.state_dict())
    model.load_state_dict(found.backbone, strict=True)
    assert found.classifier == ['head.weight', 'head.bias']
    epsilons = {f'{name}.weight': torch.tensor([eps]) for name, eps in norm_epsilons(theirs).items()}
    assert {name.removesuffix('.weight'): float(eps) for name, eps in convert_pvt_v2(epsilons).backbone.items()} == {
        name: float(torch.tensor([eps])) for name, eps in norm_epsilons(model).items()
    }


def norm_epsilons(model):
    return {name: module.eps for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}


@pytest.mark.parametrize(('size', 'millions'), [*enumerate([3.4, 13.1, 24.2, 44.0, 60.8, 81.4])])
def test_sizes_of_mit(size, millions):
    """Parameters of SegFormer's encoders, from its paper."""
    with torch.device('meta'):
        model = LaViT(f'mit_b{size}', num_va_layers=ARCH_ZOO[f'mit_b{size}'].depths, attention_residual=False)
    assert sum(value.numel() for value in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.15)


def test_names_of_a_classifier_of_mmpretrain(pvt):
    """It has no PVTv2 of its own, but timm's."""
    found = convert_pvt_v2({f'backbone.timm_model.{name}': value for name, value in weights(pvt).items()})
    expected = convert_pvt_v2(weights(pvt)).backbone
    assert found.backbone.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.backbone.items())


def test_outputs_equal_mit():
    """SegFormer's backbone in mmseg has PVTv2's layers."""
    from mmseg.models import MixVisionTransformer

    torch.manual_seed(0)
    mit = MixVisionTransformer(
        embed_dims=32, num_heads=[1, 2, 5, 8], num_layers=[2, 2, 2, 2], norm_cfg=dict(type='LN', eps=1e-6)
    ).eval()
    for parameter in mit.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model = LaViT('mit_b0', num_va_layers=2, attention_residual=False).eval()
    model.load_state_dict(convert_pvt_v2(mit.state_dict()).backbone, strict=True)
    x = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        for out, expected in zip(model(x), mit(x)):
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_less_attention_layers_take_the_values(pvt):
    model = LaViT('pvt_v2_b2', num_va_layers=(1, 4, 2, 1))
    state = weights(pvt)
    missing, unexpected = model.load_state_dict(convert_pvt_v2(state).backbone, strict=False)
    assert all('.delta_' in key or '.residual.' in key for key in missing)
    less = ['0.blocks.1', '0.blocks.2', *(f'2.blocks.{i}' for i in range(2, 6)), '3.blocks.1', '3.blocks.2']
    assert unexpected == [f'stages.{layer}.attn.q.{name}' for layer in less for name in ('weight', 'bias')]
    for name in ('weight', 'bias'):
        expected = state[f'stages.2.blocks.3.attn.kv.{name}'][320:]
        assert torch.equal(getattr(model.stages[2].blocks[3].attn.v, name), expected)


def test_layouts_are_those_of_the_models(pvt):
    """The names and shapes above are what mmdet and transformers have."""
    from mmdet.models import PyramidVisionTransformerV2

    def shapes(state):
        return {key: tuple(value.shape) for key, value in state.items()}

    theirs = PyramidVisionTransformerV2(embed_dims=64, num_layers=[3, 4, 6, 3])
    assert shapes(mmdet_names(weights(pvt))) == shapes(theirs.state_dict())
    transformers = pytest.importorskip('transformers')
    config = transformers.PvtV2Config(
        depths=[3, 4, 6, 3], hidden_sizes=[64, 128, 320, 512], mlp_ratios=[8, 8, 4, 4], num_labels=5
    )
    theirs = shapes(transformers.PvtV2ForImageClassification(config).state_dict())
    assert shapes(transformers_names(weights(pvt))) == {k: v for k, v in theirs.items() if k != 'classifier.bias'}


@pytest.mark.parametrize('names', LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_tensor_is_accounted_for(pvt, names):
    """A whole detector, of which some layers become less-attention layers."""
    state = names(weights(pvt))
    heads = {'neck.a': torch.ones(1), 'bbox_head.norm1.weight': torch.ones(2)}
    detector = {**{f'backbone.{key}': value for key, value in state.items() if 'classifier' not in key}, **heads}
    found = convert_pvt_v2(detector)
    assert found.others == heads and not found.classifier
    assert found.layout == {'official_names': 'the official repository', 'dict': 'timm'}.get(
        names.__name__, names.__name__.removesuffix('_names')
    )
    elements = sum(value.numel() for value in found.backbone.values())
    assert elements == sum(value.numel() for value in weights(pvt).values())


def test_an_unknown_key_is_named():
    with pytest.raises(ConfigError, match="'stages.0.blocks.0.attn.pool' is not a key"):
        convert_pvt_v2({'stages.0.blocks.0.attn.pool': torch.zeros(1)})


def test_keys_without_values():
    state = {f'encoder.layers.0.blocks.0.attention.{name}.weight': torch.ones(32, 32) for name in ('query', 'key')}
    with pytest.raises(ConfigError, match=r'there are keys but no values \(weight\) of stages.0.blocks.0.attn'):
        convert_pvt_v2(state)


def test_linear_variant():
    """Its names are those of the others, but what they stand for is not."""
    state = timm.create_model('pvt_v2_b0', linear=True).state_dict()
    with pytest.raises(ConfigError, match='linear variants are not supported'):
        convert_pvt_v2(state)


@pytest.fixture
def tool(monkeypatch, tmp_path):
    """Run the script in this process and in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        call_tool(monkeypatch, 'model_converters/pvt_v2_to_lavit.py', *args)

    return run


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_tool(pvt, suffix, tool, capsys):
    """From a file in either format to the backbone that a config starts from."""
    state = {key: value.clone() for key, value in weights(pvt).items()}
    if suffix == '.pth':
        torch.save(dict(model=state, epoch=300), 'pvt.pth')  # as the official training saves it
    else:
        save_file(state, 'pvt.safetensors')
    tool(f'pvt{suffix}', 'out.pth')
    expected = convert_pvt_v2(state).backbone
    assert capsys.readouterr().out == (
        f'pvt{suffix}: names as those of timm\nout.pth: {len(expected)} tensors of the backbone, 0 of neck and heads\n'
    )
    model = LaViT(
        'pvt_v2_b2',
        num_va_layers=DEPTHS,
        attention_residual=False,
        init_cfg=dict(type='Pretrained', checkpoint='out.pth', prefix='backbone.'),
    )
    model.init_weights()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['no.pth', 'out.pth'], 'checkpoint no.pth does not exist'),
        (['other.pth', 'out.pth'], "'a' is not a key of PVTv2"),
        (['head.pth', 'out.pth'], 'there are no weights of a backbone'),
        (['notes.pth', 'out.pth'], 'notes.pth cannot be read as a checkpoint'),
        (['other.pth', 'no/out.pth'], 'the folder no does not exist'),
        (['other.pth', './other.pth'], 'other.pth would overwrite its source'),
        (['other.pth', 'out.safetensors'], 'out.safetensors: expected a name that ends in .pth'),
    ],
)
def test_mistakes_of_the_tool(args, message, tool, capsys):
    torch.save({'a': torch.ones(1)}, 'other.pth')
    torch.save({'head.weight': torch.ones(1)}, 'head.pth')
    Path('notes.pth').write_text('no checkpoint')
    with pytest.raises(SystemExit) as stopped:
        tool(*args)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: {message}') and error.count('\n') == 1
    assert not Path('out.pth').exists()
