"""Less attention in plain transformers of mmpretrain and timm."""

import copy
from functools import partial

import literal
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from mmengine.structures import BaseDataElement
from small_vit import DEPTH, DIM, HEADS, VIT

from mmlavit import DiagonalityLossHook
from mmlavit.errors import ConfigError
from mmlavit.models import diagonality_loss
from mmlavit.models.observation import observe_attention
from mmlavit.models.plain_vit import PlainLessAttention, WithLessAttention
from mmlavit.utils.toolbox import load_toolbox

TIMM = dict(
    type='mmpretrain.TIMMBackbone',
    model_name='vit_tiny_patch16_224',
    img_size=64,
    embed_dim=DIM,
    depth=DEPTH,
    num_heads=HEADS,
    dynamic_img_size=True,
    num_classes=0,
)
BEIT = dict(
    VIT,
    type='mmpretrain.BEiTViT',
    out_type='avg_featmap',
    use_rel_pos_bias=False,
    use_abs_pos_emb=True,
    bias=True,
)
FIXED = {key: value for key, value in TIMM.items() if key != 'dynamic_img_size'}
REGISTERS = dict(TIMM, reg_tokens=4)
KINDS = dict(mmpretrain=VIT, timm=TIMM, registers=REGISTERS)
SIZES = [(64, 64), (96, 160), (80, 48)]


@pytest.fixture(autouse=True)
def toolbox():
    load_toolbox('mmpretrain')


def build(cfg, layers=(), seed=0, **kwargs):
    torch.manual_seed(seed)
    model = WithLessAttention(cfg, layers, **kwargs).eval()
    for name, parameter in model.named_parameters():
        if 'delta' not in name:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    return model.requires_grad_(False)


def blocks_of(model):
    inner = getattr(model.backbone, 'timm_model', model.backbone)
    return inner.layers if hasattr(inner, 'layers') else inner.blocks


def images(size):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('kind', KINDS)
def test_no_layer_converted_changes_nothing(kind, size):
    model = build(KINDS[kind])
    plain = MODELS.build(KINDS[kind])
    plain.eval()
    plain.load_state_dict(model.backbone.state_dict())
    with torch.no_grad():
        for out, expected in zip(model(images(size)), plain(images(size)), strict=True):
            torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)


def attention_by_loops(attn, x, scores, down, up):
    """Literally: scores (B, H, N, K) of the layer before to this layer's scores and output."""
    psi = torch.eye(len(up), dtype=x.dtype) + up @ attn.delta_psi @ down
    theta = torch.eye(len(down), dtype=x.dtype) + attn.delta_theta
    new, out = torch.empty_like(scores), torch.zeros_like(x)
    values = down @ x @ attn.v.weight.T + attn.v.bias
    width = x.shape[2] // HEADS
    for b in range(x.shape[0]):
        for h in range(HEADS):
            transformed = (theta @ scores[b, h].T).T  # Theta A^T
            new[b, h] = psi @ transformed
            columns = slice(h * width, (h + 1) * width)
            out[b, :, columns] = torch.softmax(new[b, h], dim=-1) @ values[b, :, columns]
    return out @ attn.proj.weight.T + attn.proj.bias, new


@pytest.mark.parametrize('reference', [None, 2])
@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('kind', KINDS)
def test_literal_formula(kind, size, reference):
    """At the own size and grid the means and interpolations are identities."""
    model = build(KINDS[kind], layers=(2, 3), reference_grid=reference).double()
    grid, extra = (size[0] // 16, size[1] // 16), model.num_extra_tokens
    reference = (reference or 4, reference or 4)
    assert model.reference_grid == reference
    # Extra tokens are neither averaged nor interpolated.
    eye = torch.eye(extra, dtype=torch.float64)
    down = torch.block_diag(eye, literal.grid_matrix(grid, reference))  # (E + K, E + N)
    up = torch.block_diag(eye, literal.grid_matrix(reference, grid))
    for layer in (2, 3):
        attn = blocks_of(model)[layer].attn
        for delta in (attn.delta_theta, attn.delta_psi):
            delta.normal_(std=0.1)
    seen = {}
    for i, block in enumerate(blocks_of(model)):
        block.attn.register_forward_hook(lambda module, args, output, i=i: seen.update({i: (args[0], output)}))
    model(images(size).double())
    # The scores of layer 1 from its own queries and averaged keys.
    x, _ = seen[1]
    vanilla = blocks_of(model)[1].attn
    qkv = (x @ vanilla.qkv.weight.T + vanilla.qkv.bias).unflatten(-1, (3, HEADS, DIM // HEADS))
    query, key, _ = qkv.permute(2, 0, 3, 1, 4)
    scores = query @ (down @ key).transpose(2, 3) / (DIM // HEADS) ** 0.5
    for layer in (2, 3):
        x, out = seen[layer]
        expected, scores = attention_by_loops(blocks_of(model)[layer].attn, x, scores, down, up)
        torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)


def test_gradient_checkpointing_is_refused():
    model = WithLessAttention(TIMM, [2, 3]).train()
    model.backbone.timm_model.set_grad_checkpointing(True)
    with pytest.raises(ConfigError, match='does not work with gradient checkpointing of its layers'):
        model(images((64, 64)))[0].sum().backward()


def checkpoint_blocks(model, numbers, reentrant):
    for i in numbers:
        block = blocks_of(model)[i]
        block.forward = partial(torch.utils.checkpoint.checkpoint, block.forward, use_reentrant=reentrant)


@pytest.mark.parametrize('reentrant', [False, True])
@pytest.mark.parametrize(('numbers', 'good'), [((0, 3), True), ((1,), False), ((2,), False), ((1, 2), False)])
def test_gradient_checkpointing_of_some_layers(numbers, good, reentrant):
    """Layers whose scores nobody takes may run again; others would take the scores of another layer, or of no use."""
    gradients = []
    for some in ((), numbers):
        model = build(VIT, layers=(2,)).train().requires_grad_(True)
        checkpoint_blocks(model, some, reentrant)
        loss = model(images((64, 64)))[0].square().sum()
        if some and not good:
            with pytest.raises(ConfigError, match='does not work with gradient checkpointing of its layers'):
                loss.backward()
            continue
        loss.backward()
        assert model._shared.scores is None
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    if good:
        torch.testing.assert_close(*gradients)


def test_adapters_on_queries_and_keys():
    """As LoRA puts them around a linear: the scores that are handed on are those that the layer attends with."""
    load_toolbox('mmpretrain')
    lora = dict(type='mmpretrain.LoRAModel', alpha=1, rank=4, targets=[dict(type='qkv')])
    torch.manual_seed(0)
    model = MODELS.build(dict(lora, module=dict(type='WithLessAttention', backbone=VIT, layers=[2, 3]))).eval()
    qkv = blocks_of(model.module)[1].attn.qkv
    assert type(qkv).__name__ == 'LoRALinear'
    with torch.no_grad():
        qkv.lora_up.weight.normal_(std=0.5)
        found = model.module(images((64, 64)))[0]
        merged = copy.deepcopy(model.module)
        merged_qkv = blocks_of(merged)[1].attn.qkv.original_layer
        merged_qkv.weight += qkv.scaling * qkv.lora_up.weight @ qkv.lora_down.weight
        blocks_of(merged)[1].attn.qkv = merged_qkv
        torch.testing.assert_close(merged(images((64, 64)))[0], found, rtol=1e-4, atol=1e-4)
        blocks_of(merged)[1].attn.qkv.weight.zero_()
        assert not torch.allclose(merged(images((64, 64)))[0], found, atol=1e-2)


def test_adapters_of_a_model_that_has_not_run():
    model = WithLessAttention(VIT, [2, 3]).eval()
    attn = blocks_of(model)[1].attn
    attn.qkv = torch.nn.Sequential(attn.qkv)
    with pytest.raises(ConfigError, match='run the model once before it is compiled or exported'):
        torch.export.export(model, (images((64, 64)),))
    expected = model(images((64, 64)))[0]
    exported = torch.export.export(model, (images((64, 64)),)).module()
    torch.testing.assert_close(exported(images((64, 64)))[0], expected)


@pytest.mark.parametrize('cfg', KINDS.values(), ids=KINDS)
def test_compiled_in_training(cfg):
    """As one graph: of parts, which all layers share, torch.compile would leave out the hooks of some."""
    torch._dynamo.reset()
    model = build(cfg, [2, 3]).requires_grad_(True).train()
    compiled = torch.compile(copy.deepcopy(model), backend='eager', fullgraph=True)
    for x in (images((64, 64)), images((64, 64))):
        found, expected = compiled(x)[0], model(x)[0]
        torch.testing.assert_close(found, expected)
    for run in (compiled, model):
        run(x)[0].square().sum().backward()
    for a, b in zip(compiled.parameters(), model.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        torch.testing.assert_close(a.grad, b.grad)


def test_maps_of_several_layers_of_timm():
    """features_only=True, which gives maps to necks."""
    model = build(dict(TIMM, features_only=True, out_indices=(1, 3)), layers=(2, 3))
    plain = build(TIMM, layers=(2, 3))
    state = {name.replace('timm_model.', 'timm_model.model.'): value for name, value in plain.state_dict().items()}
    model.load_state_dict(state, strict=False)
    maps = model(images((96, 160)))
    assert [tuple(some.shape) for some in maps] == [(2, DIM, 6, 10)] * 2
    blocks = blocks_of(plain)
    seen = []
    blocks[3].register_forward_hook(lambda module, args, output: seen.append(output))
    plain(images((96, 160)))
    torch.testing.assert_close(maps[1].flatten(2).mT, seen[0][:, 1:], rtol=1e-4, atol=1e-4)


def test_a_hybrid_of_timm():
    """Its patches are of a ResNet's map."""
    cfg = dict(TIMM, model_name='vit_tiny_r_s16_p8_224', img_size=128)
    model = build(cfg, layers=(2, 3))
    assert model(images((128, 192)))[0].shape == (2, 1 + 4 * 6, DIM)
    assert model._shared.grid == (4, 6)


@pytest.mark.parametrize('kind', KINDS)
def test_copies_are_on_their_own(kind):
    """As for averaged weights (EMA): a copy computes with its own layers."""
    model = build(KINDS[kind], layers=(2, 3))
    twin = copy.deepcopy(model)
    expected = model(images((64, 64)))
    for parameter in model.parameters():
        parameter.data.zero_()
    for out, wanted in zip(twin(images((64, 64))), expected, strict=True):
        assert torch.equal(out, wanted)


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('kind', KINDS)
def test_any_size(kind, size):
    model = build(KINDS[kind], layers=(1, 3), reference_grid=2)
    for out, plain in zip(model(images(size)), build(KINDS[kind])(images(size)), strict=True):
        assert out.shape == plain.shape and out.isfinite().all()
    assert model._shared.scores is None  # nothing is kept


class Regressor(BaseModel):
    """The smallest model of the mmengine kind around a backbone."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, inputs, data_samples=None, mode='tensor'):
        out = self.backbone(inputs)[-1]
        return dict(loss_fit=out.square().mean()) if mode == 'loss' else out


@pytest.mark.parametrize('kind', KINDS)
def test_checkpoints_of_whole_models_load(kind, tmp_path, capsys):
    """What ``load_from`` does with a model whose backbone is the transformer itself."""
    plain = Regressor(MODELS.build(KINDS[kind]))
    for parameter in plain.parameters():
        parameter.data.normal_()
    torch.save(dict(state_dict=plain.state_dict()), tmp_path / 'plain.pth')
    model = Regressor(WithLessAttention(KINDS[kind], layers=(2,)))
    load_checkpoint(model, str(tmp_path / 'plain.pth'), map_location='cpu', strict=False)
    own = model.backbone.backbone.state_dict()
    for name, value in plain.backbone.state_dict().items():
        if '.2.attn.qkv.' in name:
            name, value = name.replace('qkv', 'v'), value.chunk(3)[2]
        assert torch.equal(own[name], value)
    again = Regressor(WithLessAttention(KINDS[kind], layers=(2,)))
    again.load_state_dict(model.state_dict())  # and its own, strictly
    assert torch.equal(again.backbone.backbone.state_dict()[name], value)


def test_checkpoints_of_the_transformer_load():
    plain = MODELS.build(VIT)
    model = WithLessAttention(VIT, layers=(2, 3))
    missing, unexpected = model.backbone.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all('delta' in name for name in missing) and len(missing) == 4
    wanted = plain.layers[2].attn.qkv.weight[-DIM:]
    assert torch.equal(model.backbone.layers[2].attn.v.weight, wanted)
    # And its own.
    other = WithLessAttention(VIT, layers=(2, 3))
    other.load_state_dict(model.state_dict(), strict=True)
    # Norms of queries and keys are left out with these.
    normed = WithLessAttention(dict(TIMM, qk_norm=True), layers=(2, 3)).backbone
    plain = MODELS.build(dict(TIMM, qk_norm=True)).state_dict()
    assert any('q_norm' in name for name in plain)
    deltas = {name: value for name, value in normed.state_dict().items() if 'delta' in name}
    normed.load_state_dict({**plain, **deltas}, strict=True)


def test_gradients_reach_the_transforms():
    model = WithLessAttention(VIT, layers=(2, 3)).train()
    model(images((96, 64)))[-1].square().mean().backward()
    attn = model.backbone.layers[2].attn
    assert isinstance(attn, PlainLessAttention)
    for parameter in (attn.delta_theta, attn.delta_psi, attn.v.weight, model.backbone.layers[1].attn.qkv.weight):
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(layers=(0, 1)), 'increasing numbers from 1 to 3'),
        (dict(layers=(2, 1)), 'increasing numbers from 1 to 3'),
        (dict(layers=(4,)), 'increasing numbers from 1 to 3'),
        (dict(reference_grid=0), 'reference_grid must be a positive'),
        (dict(backbone=dict(TIMM, attn_drop_rate=0.5)), 'drops attention weights'),
        (dict(backbone=dict(VIT, layer_cfgs=dict(attn_drop_rate=0.5))), 'drops attention weights'),
        (dict(backbone=dict(TIMM, patch_drop_rate=0.5)), 'drops patches'),
        (dict(backbone=dict(type='mmpretrain.SwinTransformer', arch='tiny')), 'windows that shift'),
        (dict(backbone=dict(type='mmpretrain.ResNet', depth=18)), 'no plain vision transformer'),
        (
            dict(backbone=dict(type='mmpretrain.TIMMBackbone', model_name='eva02_tiny_patch14_224', num_classes=0)),
            'rotary embeddings',
        ),
        (dict(backbone=dict(FIXED, model_name='vit_relpos_small_patch16_224')), 'has rel_pos,'),
        (dict(backbone=dict(FIXED, model_name='vit_srelpos_small_patch16_224')), 'has shared_rel_pos'),
        (dict(backbone=dict(FIXED, model_name='beit_base_patch16_224')), 'has q_bias, v_bias'),
        (dict(backbone=dict(TIMM, model_name='vit_dlittle_patch16_reg1_gap_256')), 'has lambda_q1'),
        (dict(backbone=dict(VIT, type='mmpretrain.BEiTViT', out_type='avg_featmap')), 'relative_position_bias_table'),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {**dict(backbone=VIT, layers=(2, 3)), **change}
    with pytest.raises(ConfigError, match=message):
        WithLessAttention(**arguments)


def test_a_beit_without_biases_of_positions():
    """Its layers pass on that they have none."""
    model = build(BEIT, (2, 3))
    assert model(images((64, 64)))[-1].isfinite().all()
    with pytest.raises(ConfigError, match='no queries and keys, so relative position biases'):
        model.backbone.layers[2].attn(torch.zeros(1, 17, DIM), rel_pos_bias=torch.zeros(1))


def test_frozen_layers_stay_frozen():
    model = WithLessAttention(dict(VIT, frozen_stages=3), [1, 2, 3])
    trained = {name.split('.')[2] for name, p in model.named_parameters() if p.requires_grad and '.layers.' in name}
    assert trained == {'3'}
    assert not model.backbone.layers[1].attn.training


@pytest.mark.parametrize(
    ('init_cfg', 'message'),
    [
        (dict(checkpoint='a.pth'), 'init_cfg needs a type'),
        ('a.pth', 'init_cfg must be a dict, a list of dicts or None'),
        (['a.pth'], 'init_cfg must be a dict, a list of dicts or None'),
    ],
)
def test_wrong_init_cfg(init_cfg, message):
    with pytest.raises(ConfigError, match=message):
        WithLessAttention(VIT, [1], init_cfg=init_cfg)


def test_init_cfg_without_a_checkpoint():
    WithLessAttention(VIT, [1], init_cfg=dict(type='Pretrained', checkpoint=None)).init_weights()


@pytest.mark.parametrize('kind', KINDS)
def test_diagonality_loss(kind):
    """At the own size the scores of cells are square, and the loss is the mean over the layers."""
    model = Regressor(build(KINDS[kind], layers=(1, 3)).requires_grad_(True).double())
    x, seen = images((64, 64)).double(), []
    with observe_attention(model.backbone, seen.append):
        model(x)
    hook = DiagonalityLossHook(weight=0.5)
    hook.attach(model)
    losses = model(x, None, mode='loss')
    cells = [layer.scores[:, :, layer.extra :, layer.extra :] for layer in seen if layer.less]
    assert [layer.extra for layer in seen] == [dict(registers=5).get(kind, 1)] * DEPTH and len(cells) == 2
    expected = 0.5 * torch.stack([diagonality_loss(scores) for scores in cells]).mean()
    torch.testing.assert_close(losses['loss_diag'], expected)
    losses['loss_diag'].backward()
    assert blocks_of(model.backbone)[3].attn.delta_theta.grad.abs().max() > 0
    assert torch.equal(model(x), model(x)) and hook._terms == []  # only in training
    # Of an image half as high as the batch, the upper half of the cells counts.
    shapes = ((64, 64), (32, 64))
    samples = [BaseDataElement(metainfo=dict(img_shape=shape, batch_input_shape=(64, 64))) for shape in shapes]
    inside = torch.ones(2, 16, dtype=torch.float64)
    inside[1, 8:] = 0
    expected = 0.5 * torch.stack([diagonality_loss(scores, inside) for scores in cells]).mean()
    torch.testing.assert_close(model(x, samples, mode='loss')['loss_diag'], expected)
    hook.detach()
    assert model(x, None, mode='loss').keys() == {'loss_fit'}


def test_depths_of_layers():
    """As those of the transformer itself, for learning rates that decay by layers."""
    model = MODELS.build(dict(type='WithLessAttention', backbone=VIT, layers=[1, 2]))
    plain = MODELS.build(VIT)
    for name, _ in plain.named_parameters():
        assert model.get_layer_depth(f'backbone.backbone.{name}', 'backbone.') == plain.get_layer_depth(
            f'backbone.{name}', 'backbone.'
        )
    assert model.get_layer_depth('backbone.backbone.layers.2.attn.delta_psi', 'backbone.') == (3, DEPTH + 2)
    assert model.get_layer_depth('head.fc.weight', 'backbone.') == (DEPTH + 1, DEPTH + 2)
    with pytest.raises(NotImplementedError, match='TIMMBackbone has no get_layer_depth'):
        MODELS.build(dict(type='WithLessAttention', backbone=TIMM, layers=[1])).get_layer_depth('x')


def test_masked_patches_are_refused():
    cfg = dict(type='mmpretrain.MAEViT', arch='b', img_size=64, patch_size=16, mask_ratio=0.75)
    cfg['arch'] = VIT['arch']
    model = WithLessAttention(cfg, [1])
    with pytest.raises(ConfigError, match='the tokens of a whole grid, 4x4 and 1 more, but got 5: masked patches'):
        model(images((64, 64)))
    with pytest.raises(ConfigError, match='masked pre-training is not possible'):
        model(images((64, 64)), torch.zeros(2, 16))


def test_tokens_beside_the_grid():
    """mmpretrain's Grad-CAM asks for their number."""
    for count in (True, False):
        model = WithLessAttention({**VIT, 'with_cls_token': count, 'out_type': 'featmap'}, range(1, 3))
        assert model.num_extra_tokens == int(count) and model.layers == (1, 2)
