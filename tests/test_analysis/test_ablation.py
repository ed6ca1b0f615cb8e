"""What is taken away is gone: a trained model without it, and networks that are trained without it."""

import copy

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from small_vit import VIT

from mmlavit import DiagonalityLossHook, LaViT
from mmlavit.analysis.ablation import ablate
from mmlavit.analysis.controls import CONTROLS, PLAIN_CONTROLS, LaViTControl, WithLessAttentionControl
from mmlavit.errors import ConfigError
from mmlavit.models import LessAttention
from mmlavit.models.layout import Scores
from mmlavit.models.plain_vit import find_transformer
from mmlavit.utils.toolbox import load_toolbox

LAYERS = (1, 1, 1, 1)  # vanilla ones of LaViT-nano


def build(**kwargs):
    torch.manual_seed(0)
    model = LaViT('nano', drop_path_rate=0.0, **kwargs).eval()
    for name, parameter in model.named_parameters():
        if '.delta_' in name or parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(params=[False, True], ids=['lavit', 'twin'])
def model(request):
    return build(num_va_layers=(2, 2, 3, 2), attention_residual=False) if request.param else build()


def outputs(model):
    torch.manual_seed(1)
    with torch.no_grad():
        return torch.cat([out.flatten() for out in model(torch.rand(1, 3, 97, 161))])


def later_blocks(model):
    return [block for stage, count in zip(model.stages, LAYERS, strict=True) for block in stage.blocks[count:]]


def test_without_residuals():
    wanted = build(attention_residual=False)
    model = build()
    wanted.load_state_dict({k: v for k, v in model.state_dict().items() if '.residual.' not in k})
    ablate(model, 'residual', LAYERS)
    torch.testing.assert_close(outputs(model), outputs(wanted))


def test_without_transforms():
    """As the control that never had any."""
    model = build()
    wanted = LaViTControl('nano', drop_path_rate=0.0, later='shared').eval()
    wanted.load_state_dict({k: v for k, v in model.state_dict().items() if '.delta_' not in k})
    before = outputs(model)
    ablate(model, 'transforms', LAYERS)
    torch.testing.assert_close(outputs(model), outputs(wanted))
    assert not torch.allclose(before, outputs(wanted), rtol=1e-3)


def test_without_attention(model):
    """As projections that give zero."""
    wanted = copy.deepcopy(model)
    for block in later_blocks(wanted):
        torch.nn.init.zeros_(block.attn.proj.weight)
        torch.nn.init.zeros_(block.attn.proj.bias)
    ablate(model, 'none', LAYERS)
    torch.testing.assert_close(outputs(model), outputs(wanted))


def test_uniform_attention_of_vanilla_layers():
    """As queries and their bias at zero."""
    model = build(num_va_layers=(2, 2, 3, 2), attention_residual=False)
    wanted = copy.deepcopy(model)
    for block in later_blocks(wanted):
        torch.nn.init.zeros_(block.attn.q.weight)
        torch.nn.init.zeros_(block.attn.q.bias)
    before = outputs(model)
    ablate(model, 'uniform', LAYERS)
    torch.testing.assert_close(outputs(model), outputs(wanted), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, outputs(wanted), rtol=1e-3)


@pytest.mark.parametrize('later', ['uniform', 'none'])
def test_trained_controls_are_ablated_models(later):
    # Without residuals, since an ablated layer still transforms the scores that the next stage gets.
    model = build(attention_residual=False)
    control = LaViTControl('nano', attention_residual=False, drop_path_rate=0.0, later=later).eval()
    names = control.state_dict().keys()
    control.load_state_dict({k: v for k, v in model.state_dict().items() if k in names})
    ablate(model, later, LAYERS)
    torch.testing.assert_close(outputs(model), outputs(control))


def build_plain(layers=(2, 3)):
    """A plain transformer of four layers, some of which may have less attention."""
    torch.manual_seed(0)
    arch = dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=48)
    backbone = dict(type='VisionTransformer', arch=arch, img_size=64, patch_size=16, out_type='featmap')
    if layers:
        backbone = dict(type='WithLessAttention', backbone=backbone, layers=list(layers))
    load_toolbox('mmpretrain')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(backbone)
    model.eval()  # which gives nothing back in mmpretrain
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def plain_attention(model):
    return [layer.attn for layer in find_transformer(model).layers[2:]]


@pytest.mark.parametrize('layers', [(2, 3), ()], ids=['less', 'full'])
def test_plain_without_attention(layers):
    model = build_plain(layers)
    wanted = copy.deepcopy(model)
    for attn in plain_attention(wanted):
        torch.nn.init.zeros_(attn.proj.weight)
        torch.nn.init.zeros_(attn.proj.bias)
    ablate(model, 'none', layers=None if layers else [2, 3])
    torch.testing.assert_close(outputs(model), outputs(wanted))


def test_plain_uniform_attention():
    """Less attention without scores, and full attention without queries: the same mean."""
    less, full = build_plain(), build_plain(())
    state = full.state_dict()
    for name in list(state):
        if '.qkv.' in name and name.startswith(('layers.2', 'layers.3')):
            state[name.replace('.qkv.', '.v.')] = state[name].chunk(3)[2]
    less.backbone.load_state_dict({k: v for k, v in state.items() if k in less.backbone.state_dict()}, strict=False)
    before = outputs(full)
    ablate(less, 'uniform')
    ablate(full, 'uniform', layers=[2, 3])
    torch.testing.assert_close(outputs(less), outputs(full))
    assert not torch.allclose(before, outputs(full), rtol=1e-3)


@pytest.mark.parametrize('later', [later for later in PLAIN_CONTROLS if later not in ('fixed', 'biased')])
def test_trained_plain_controls_are_ablated_models(later):
    model = build_plain()
    arch = dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=48)
    backbone = dict(type='VisionTransformer', arch=arch, img_size=64, patch_size=16, out_type='featmap')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        control = MODELS.build(
            dict(type='WithLessAttentionControl', backbone=backbone, layers=[2, 3], later=later)
        ).eval()
    names = control.state_dict().keys()
    control.load_state_dict({k: v for k, v in model.state_dict().items() if k in names})
    before = outputs(model)
    ablate(model, 'transforms' if later == 'shared' else later)
    torch.testing.assert_close(outputs(model), outputs(control))
    assert not torch.allclose(before, outputs(control), rtol=1e-3)
    control.train()(torch.rand(1, 3, 64, 64))[0].sum().backward()
    trained = [name for name, parameter in control.named_parameters() if parameter.requires_grad]
    assert trained == [name for name, parameter in control.named_parameters() if parameter.grad is not None]
    assert len(trained) == len(list(control.parameters())) - (12 if later == 'none' else 0)


def fix_scores(model, attn, images):
    """Draw learned scores of a layer, and give the tokens that go in and what comes out."""
    torch.nn.init.normal_(attn.fixed)
    seen = {}
    handle = attn.register_forward_hook(lambda module, args, output: seen.update(x=args[0], out=output))
    batch_outputs(model, images)
    handle.remove()
    return seen['x'], seen['out']


@pytest.mark.parametrize('later', ['fixed', 'biased'])
def test_learned_scores_of_a_plain_transformer(later):
    arch = dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=48)
    backbone = dict(type='VisionTransformer', arch=arch, img_size=64, patch_size=16, out_type='featmap')
    load_toolbox('mmpretrain')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(type='WithLessAttentionControl', backbone=backbone, layers=[2, 3], later=later))
    attn = model.eval().backbone.layers[3].attn
    x, out = fix_scores(model, attn, torch.rand(2, 3, 64, 64))
    heads = []
    for head in (0, 1):
        scores = attn.fixed[:, 17 * head : 17 * head + 17]  # (17 queries, 17 keys)
        if later == 'biased':
            query, key = attn.qk(x).split(32, dim=-1)
            query, key = (t[..., 16 * head : 16 * head + 16] for t in (query, key))
            scores = scores + query @ key.transpose(1, 2) / 4  # the root of 16
        heads.append(scores.softmax(dim=-1) @ attn.v(x)[..., 16 * head : 16 * head + 16])
    torch.testing.assert_close(out, attn.proj(torch.cat(heads, dim=-1)))
    assert model(torch.rand(1, 3, 80, 48))[0].shape[-2:] == (5, 3)
    maps = model(torch.rand(1, 3, 64, 64))[0]
    (maps * torch.randn_like(maps)).sum().backward()  # the sum of a LayerNorm's channels is constant
    assert attn.fixed.grad.abs().sum() > 0


def test_biased_scores_start_from_a_checkpoint(tmp_path):
    """Queries and keys, too."""
    load_toolbox('mmpretrain')
    plain = MODELS.build(VIT)
    model = WithLessAttentionControl(VIT, [2, 3], later='biased')
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert missing == [f'backbone.layers.{i}.attn.fixed' for i in (2, 3)] and not unexpected
    qkv, attn = plain.layers[3].attn.qkv, model.backbone.layers[3].attn
    assert torch.equal(torch.cat([attn.qk.weight, attn.v.weight]), qkv.weight)
    assert torch.equal(torch.cat([attn.qk.bias, attn.v.bias]), qkv.bias)
    # Weights that are loaded while the transformer is built.
    timm = dict(type='mmpretrain.TIMMBackbone', model_name='vit_tiny_patch16_224', depth=2, num_classes=0)
    plain = MODELS.build(timm).timm_model
    torch.save(plain.state_dict(), tmp_path / 'timm.pth')
    model = WithLessAttentionControl({**timm, 'checkpoint_path': str(tmp_path / 'timm.pth')}, [1], later='biased')
    qkv, attn = plain.blocks[1].attn.qkv, model.backbone.timm_model.blocks[1].attn
    assert torch.equal(torch.cat([attn.qk.weight, attn.v.weight]), qkv.weight)
    assert torch.equal(torch.cat([attn.qk.bias, attn.v.bias]), qkv.bias)
    timm['qk_norm'] = True
    with pytest.raises(ConfigError, match='has no norms of queries and keys'):
        WithLessAttentionControl(timm, [1], later='biased')


def test_fixed_scores_of_a_pyramid():
    """In stage 4, whose grids are equal at this size."""
    model = LaViTControl('nano', drop_path_rate=0.0, later='fixed').eval()
    attn = model.stages[3].blocks[1].attn
    x, (out, _) = fix_scores(model, attn, torch.rand(2, 3, 128, 128))
    fixed = attn.fixed.unflatten(1, (attn.heads, 16)).softmax(dim=-1)
    value = attn.v(attn.reduction(x, (4, 4))).chunk(attn.heads, dim=-1)
    wanted = torch.cat([fixed[:, head] @ value[head] for head in range(attn.heads)], dim=-1)
    torch.testing.assert_close(out, attn.proj(wanted))


@pytest.mark.parametrize('what', ['psi', 'theta'])
@pytest.mark.parametrize('plain', [False, True], ids=['lavit', 'plain'])
def test_one_transform(plain, what):
    """As zeros in its place."""
    model = build_plain() if plain else build()
    wanted = copy.deepcopy(model)
    for name, parameter in wanted.named_parameters():
        if name.endswith(f'.delta_{what}'):
            torch.nn.init.zeros_(parameter)
    before = outputs(model)
    ablate(model, what, LAYERS)
    torch.testing.assert_close(outputs(model), outputs(wanted))
    assert not torch.allclose(before, outputs(model), rtol=1e-3)


@pytest.mark.parametrize('what', ['psi', 'theta', 'transforms', 'blocks'])
def test_transforms_of_chosen_layers(what):
    """As with what is done to their attention, the others keep theirs."""
    model = build_plain()
    before = copy.deepcopy(model)
    ablate(model, what, layers=[3])
    first, last = (find_transformer(model).layers[i].attn for i in (2, 3))
    kept = find_transformer(before).layers[2].attn
    assert torch.equal(first.delta_psi, kept.delta_psi) and torch.equal(first.delta_theta, kept.delta_theta)
    assert 'transform' not in vars(first) and 0 != first.delta_psi.abs().sum()
    if what == 'blocks':
        assert 'transform' in vars(last)
    else:
        assert (last.delta_psi.abs().sum() == 0) == (what != 'theta')
        assert (last.delta_theta.abs().sum() == 0) == (what != 'psi')
    with pytest.raises(ConfigError, match='this backbone has no'):
        ablate(build_plain(), what, layers=[1])


def literal_blocks(layer, scores, reference, extra):
    """Query by query: `layer` has the transforms."""
    height, width = scores.grid
    a = scores.map.unflatten(-1, (layer.heads, -1))  # (B, E + N, H, E + K)
    a = a + a @ layer.delta_theta.T
    added = layer.delta_psi @ layer.reduce_queries(a.flatten(2), scores.grid)
    wanted = a.flatten(2).clone()
    wanted[:, :extra] += added[:, :extra]
    for row in range(height):
        for column in range(width):
            cell = int((row + 0.5) / height * reference[0]), int((column + 0.5) / width * reference[1])
            wanted[:, extra + row * width + column] += added[:, extra + cell[0] * reference[1] + cell[1]]
    return wanted


@pytest.mark.parametrize('grid', [(6, 9), (3, 2), (4, 4)])
def test_blocks(grid):
    model = build_plain()
    layer = plain_attention(model)[0]
    scores = Scores(torch.rand(2, 1 + grid[0] * grid[1], layer.heads * 17), layer.heads, grid)
    wanted = literal_blocks(layer, scores, (4, 4), 1)
    before = layer.transform(scores).map
    ablate(model, 'blocks')
    torch.testing.assert_close(layer.transform(scores).map, wanted)
    assert torch.allclose(before, wanted, rtol=1e-4) == (grid == (4, 4))  # at its own size, there is nothing to spread


def test_blocks_of_a_pyramid():
    model = build()
    layer = later_blocks(model)[2].attn  # of stage 3
    scores = Scores(torch.rand(2, 5 * 9, layer.heads * 16), layer.heads, (5, 9))
    wanted = literal_blocks(layer, scores, layer.query_grid, 0)
    ablate(model, 'blocks', LAYERS)
    torch.testing.assert_close(layer.transform(scores).map, wanted)


def batch_outputs(model, images):
    with torch.no_grad():
        return torch.cat([out.flatten(1) for out in model(images)], dim=1)


@pytest.mark.parametrize('kind', ['lavit', 'twin', 'pool', 'less', 'full'])
def test_content(kind):
    """Nothing changes for a batch of equal images, and something for others."""
    twin = dict(num_va_layers=(2, 2, 3, 2), attention_residual=False)
    model = {
        'lavit': build,
        'twin': lambda: build(**twin),
        'pool': lambda: build(**twin, key_reduction='pool'),
        'less': build_plain,
        'full': lambda: build_plain(()),
    }[kind]()
    images = torch.rand(3, 3, 97, 161) if kind in ('lavit', 'twin', 'pool') else torch.rand(3, 3, 64, 64)
    equal = images[:1].expand_as(images)
    before = batch_outputs(model, images)
    wanted = batch_outputs(model, equal)
    ablate(model, 'content', LAYERS, layers=[2, 3] if kind == 'full' else None)
    torch.testing.assert_close(batch_outputs(model, equal), wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(batch_outputs(model, images), before, rtol=1e-2)


def test_content_leaves_the_residual_alone():
    """The next stage gets the scores of each image, from LaViT as from its twin."""
    model = build()
    seen = []
    model.stages[1].residual.register_forward_hook(lambda module, args, output: seen.append(args[0].map.clone()))
    images = torch.rand(3, 3, 97, 161)
    with torch.no_grad():
        model(images)
        ablate(model, 'content', LAYERS)
        model(images)
    last = model.stages[0].blocks[-1].attn
    assert isinstance(last, LessAttention)
    # Later layers see other tokens, but their scores come from the first layer's alone.
    torch.testing.assert_close(seen[1], seen[0])
    assert seen[1].std(0).max() > 1e-3


@pytest.mark.parametrize('layers', [(3,), ()], ids=['less', 'full'])
def test_content_of_a_layer(layers):
    """Head by head, the softmax of the mean of scores."""
    model = build_plain(layers)
    before, last = (layer.attn for layer in find_transformer(model).layers[2:])
    seen = {}
    before.qkv.register_forward_hook(lambda module, args, output: seen.update(qkv=output))
    last.register_forward_hook(lambda module, args, output: seen.update(x=args[0]))
    ablate(model, 'content', layers=None if layers else [3])
    last.register_forward_hook(lambda module, args, output: seen.update(out=output))
    batch_outputs(model, torch.rand(3, 3, 64, 64))
    if not layers:
        seen['qkv'] = last.qkv(seen['x'])
    value = last.v(seen['x']) if layers else seen['qkv'][..., 64:]
    for image in range(3):
        heads = []
        for channels in (slice(0, 16), slice(16, 32)):
            a = torch.stack(
                [q[:, channels] @ k[:, channels].T / 4 for q, k, _ in (one.chunk(3, 1) for one in seen['qkv'])]
            )
            if layers:
                one = torch.eye(a.shape[-1])
                a = (one + last.delta_psi) @ a @ (one + last.delta_theta).T
            heads.append(a.mean(dim=0).softmax(dim=-1) @ value[image][:, channels])
        torch.testing.assert_close(seen['out'][image], last.proj(torch.cat(heads, dim=1)), rtol=1e-4, atol=1e-4)


def test_plain_layers_that_are_not_there():
    with pytest.raises(ConfigError, match='layers must be increasing numbers from 0 to 3'):
        ablate(build_plain(()), 'none', layers=[4])
    with pytest.raises(ConfigError, match='this backbone has no later layers'):
        ablate(build_plain(()), 'none')
    with pytest.raises(ConfigError, match='num_va_layers is missing'):
        ablate(build(), 'none')
    for number in (1, (1, 1), (0, 1, 1, 1), (1, 1, 1, 9)):
        with pytest.raises(ConfigError, match=r'is .*, expected a number from 1 to each of \[2, 2, 3, 2\]'):
            ablate(build(), 'none', num_va_layers=number)


def test_what_is_not_there():
    twin = build(num_va_layers=(2, 2, 3, 2), attention_residual=False)
    for what, title in (('residual', 'attention residuals'), ('transforms', 'transforms of scores')):
        with pytest.raises(ConfigError, match=f'this backbone has no {title}'):
            ablate(twin, what, LAYERS)
    with pytest.raises(ConfigError, match='Linear is no plain vision transformer'):
        ablate(torch.nn.Linear(1, 1), 'none', LAYERS)


@pytest.mark.parametrize('later', CONTROLS)
def test_controls_train(later):
    model = MODELS.build(dict(type='LaViTControl', arch='nano', later=later))
    sum(out.square().mean() for out in model(torch.rand(1, 3, 97, 161))).backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not unused
    assert sum(isinstance(module, LessAttention) for module in model.modules()) == 5


@pytest.mark.parametrize('later', CONTROLS)
def test_frozen_controls_stay_frozen(later):
    model = LaViTControl('nano', later=later, frozen_stages=2)
    assert not any(p.requires_grad for stage in model.stages[:2] for p in stage.parameters())
    assert all(p.requires_grad for p in model.stages[2].parameters())


@pytest.mark.parametrize('later', CONTROLS)
def test_what_is_for_less_attention_refuses_controls(later):
    model = LaViTControl('nano', later=later)
    with pytest.raises(ConfigError, match=rf"LaViTControl has something else .*later='{later}'.*so nothing is taken"):
        ablate(model, 'uniform', LAYERS)
    with pytest.raises(ConfigError, match=rf"later='{later}'.*remove the hook from custom_hooks"):
        DiagonalityLossHook().attach(torch.nn.ModuleDict(dict(backbone=model)))


def test_control_of_a_twin():
    with pytest.raises(ConfigError, match='all layers are vanilla, so there is nothing to replace'):
        LaViTControl('nano', num_va_layers=(2, 2, 3, 2), later='none')


def test_unknown_control():
    with pytest.raises(ConfigError, match="later must be one of shared, fixed, uniform, none, got 'half'"):
        LaViTControl('nano', later='half')


@pytest.mark.parametrize('later', CONTROLS)
def test_controls_start_from_full_attention(later):
    """They take the values of the twin where they have any, and leave the rest under the names that it has there."""
    twin = LaViT('nano', num_va_layers=(2, 2, 3, 2), attention_residual=False)
    model = LaViTControl('nano', later=later)
    unexpected = model.load_state_dict(twin.state_dict(), strict=False).unexpected_keys
    names = [name.partition('.attn.')[2] for name in unexpected if name.startswith('stages.0.blocks.1.attn.')]
    if later == 'none':
        assert 'kv.weight' in names and 'v.weight' not in names
    else:
        assert names == ['q.weight', 'q.bias']
        values = twin.stages[0].blocks[1].attn.kv.weight[32:]
        assert torch.equal(model.stages[0].blocks[1].attn.v.weight, values)
