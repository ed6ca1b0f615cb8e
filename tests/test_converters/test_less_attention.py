"""Students that start from a teacher of vanilla layers."""

from itertools import permutations

import pytest
import torch
from mmengine.registry import MODELS
from small_vit import VIT
from torch import nn

from mmlavit import LaViT
from mmlavit.analysis.controls import WithLessAttentionControl
from mmlavit.converters.less_attention import build_twin, copy_teacher, find_twin, fit_transforms, gives_the_same
from mmlavit.converters.pvt_v2 import convert_pvt_v2
from mmlavit.models.plain_vit import WithLessAttention, find_transformer
from mmlavit.utils.toolbox import load_toolbox

TOY = dict(
    embed_dims=(8, 16, 16, 24), num_heads=(1, 2, 4, 3), depths=(1, 1, 3, 2), num_va_layers=(1, 1, 1, 1),
    mlp_ratios=(2, 2, 2, 2), key_grid=4, query_grids=(4, 4, 8, 4),
)  # fmt: skip
SIZE = 128  # the reference grids are those of the stages


class Detector(nn.Module):
    """As far as copying goes."""

    def __init__(self, channels=4, **kwargs):
        super().__init__()
        self.backbone = LaViT(TOY, drop_path_rate=0.0, **kwargs)
        self.neck = nn.Conv2d(24, channels, 1)
        self.head = nn.Conv2d(4, 2, 1)


def build_teacher(seed=0, **kwargs):
    torch.manual_seed(seed)
    teacher = Detector(num_va_layers=TOY['depths'], attention_residual=False, **kwargs).eval()
    for parameter in teacher.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return teacher.requires_grad_(False)


def build_student(teacher, **kwargs):
    student = Detector(**kwargs).eval().requires_grad_(False)
    twin = build_twin(dict(type='LaViT', arch=TOY), teacher.state_dict())
    return student, twin, copy_teacher(student, teacher.state_dict(), twin)


def images(size=SIZE, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def make_layer_like(teacher, stage, wanted, source, order, scale=1.0):
    """Give layer ``wanted`` the scores of layer ``source``, times ``scale``, its heads in another order.

    The layers from ``source`` on change nothing, so that both see the same tokens.
    """
    blocks = teacher.backbone.stages[stage].blocks
    for block in blocks[source:]:
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight.zero_()
            layer.bias.zero_()
    here, there = blocks[wanted], blocks[source]
    here.norm1.load_state_dict(there.norm1.state_dict())
    here.attn.reduction.load_state_dict(there.attn.reduction.state_dict())
    channels = torch.arange(here.attn.q.in_features).unflatten(0, (len(order), -1))[torch.tensor(order)].flatten()
    half = len(channels)
    for name in ('weight', 'bias'):
        values = getattr(here.attn.kv, name)
        getattr(here.attn.q, name).copy_(scale * getattr(there.attn.q, name)[channels])
        values[:half].copy_(getattr(there.attn.kv, name)[:half][channels])


def revive(teacher, stage, block):
    """Let the attention of a layer do something again."""
    torch.manual_seed(5)
    teacher.backbone.stages[stage].blocks[block].attn.proj.weight.normal_(std=0.3)


def test_twin_is_the_teacher():
    teacher = build_teacher()
    _, twin, _ = build_student(teacher)
    for out, expected in zip(twin(images()), teacher.backbone(images())):
        torch.testing.assert_close(out, expected, rtol=0, atol=0)


@pytest.mark.parametrize('change', [dict(num_heads=(1, 4, 2, 3)), dict(key_grid=2)], ids=str)
def test_networks_that_differ_where_no_size_tells(change):
    x = dict(type='LaViT', arch=TOY, key_reduction='pool')
    vanilla = dict(num_va_layers=TOY['depths'], attention_residual=False, key_reduction='pool')
    for arch, same in ((TOY, True), ({**TOY, **change}, False)):
        torch.manual_seed(0)
        teacher = LaViT(arch, **vanilla).eval()
        for parameter in teacher.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        twin = build_twin(x, {f'backbone.{k}': v for k, v in teacher.state_dict().items()})
        assert gives_the_same(twin, teacher) == same
    fewer = build_twin({**x, 'out_indices': (1, 2)}, Detector(**vanilla).state_dict())
    assert not gives_the_same(fewer, teacher)


@pytest.mark.parametrize(('ours', 'theirs'), [((0, 1, 2), (0, 1, 2, 3)), ((0, 1, 2, 3), (0, 2))], ids=str)
def test_one_of_them_has_fewer_stages(ours, theirs):
    teacher, student = build_teacher(out_indices=theirs), Detector(out_indices=ours).eval().requires_grad_(False)
    twin = build_twin(dict(type='LaViT', arch=TOY, out_indices=theirs), teacher.state_dict())
    for out, expected in zip(twin(images()), teacher.backbone(images()), strict=True):
        torch.testing.assert_close(out, expected, rtol=0, atol=0)
    copied = copy_teacher(student, teacher.state_dict(), twin)
    assert {name.split('.')[2] for name in copied if name.startswith('backbone.stages')} == {'0', '1', '2'}
    assert [fit.name for fit in fit_transforms(student.backbone, twin, [images()])] == [
        'stages.2.blocks.1', 'stages.2.blocks.2'
    ]  # fmt: skip


def test_what_is_copied():
    teacher = build_teacher()
    student, _, copied = build_student(teacher, channels=5)
    state, source = student.state_dict(), teacher.state_dict()
    own = [name for name in state if name not in copied]
    # Another width of the neck: it keeps its own weights, as do transforms and attention residuals.
    assert [name for name in own if not name.startswith('backbone.')] == ['neck.weight', 'neck.bias']
    parts = ('.delta_', '.residual.', 'neck.')
    assert all(any(part in name for part in parts) for name in own)
    assert not any(any(part in name for part in parts) for name in copied)
    for name in copied:
        assert torch.equal(
            state[name], source[name] if name in source else source[name.replace('.v.', '.kv.')][-len(state[name]) :]
        )
    assert all(not stage.residual.layer_scale.any() for stage in student.backbone.stages if stage.residual)


def test_a_student_without_less_attention_is_the_teacher():
    teacher = build_teacher()
    student, _, _ = build_student(teacher, num_va_layers=TOY['depths'])
    for out, expected in zip(student.backbone(images()), teacher.backbone(images())):
        torch.testing.assert_close(out, expected)


def test_other_networks_have_no_twin():
    student = Detector()
    resnet = {'backbone.conv1.weight': torch.zeros(64, 3, 7, 7), 'neck.weight': torch.ones(4, 24, 1, 1)}
    assert build_twin(dict(type='LaViT', arch=TOY), resnet) is None
    assert build_twin(dict(type='LaViT', arch=TOY), {}) is None
    wider = LaViT({**TOY, 'embed_dims': (8, 16, 32, 24)}, num_va_layers=TOY['depths'], attention_residual=False)
    state = {f'backbone.{name}': value for name, value in wider.state_dict().items()}
    assert build_twin(dict(type='LaViT', arch=TOY), state) is None
    assert copy_teacher(student, resnet, None) == ['neck.weight']


def test_a_layer_with_the_scores_of_the_one_before_needs_no_transform():
    teacher = build_teacher()
    make_layer_like(teacher, 2, wanted=1, source=0, order=[0, 1, 2, 3])
    revive(teacher, 2, 1)
    student, twin, _ = build_student(teacher)
    fit = fit_transforms(student.backbone, twin, [images()])[0]
    assert fit.name == 'stages.2.blocks.1'
    assert fit.before < 1e-10 and fit.after < 1e-10
    layer = student.backbone.stages[2].blocks[1].attn
    assert layer.delta_theta.abs().max() < 1e-4 and layer.delta_psi.abs().max() < 1e-4


@pytest.mark.parametrize('size', [SIZE, 160], ids=['own size', 'another size'])
def test_heads_are_matched_and_scores_scaled(size):
    """The student then computes what the teacher computes, up to the ridge."""
    teacher = build_teacher()
    make_layer_like(teacher, 2, wanted=1, source=0, order=[2, 0, 3, 1], scale=2.0)
    revive(teacher, 2, 1)
    student, twin, _ = build_student(teacher)
    x = images(size)
    outputs = {}

    def watch(name):
        return lambda module, args, output: outputs.update({name: output[0]})

    student.backbone.stages[2].blocks[1].attn.register_forward_hook(watch('student'))
    twin.stages[2].blocks[1].attn.register_forward_hook(watch('teacher'))
    fit = fit_transforms(student.backbone, twin, [x], ridge=1e-9)[0]
    assert fit.before > 0.5 and fit.after < 1e-6
    student.backbone(x)
    twin(x)
    if size == SIZE:
        torch.testing.assert_close(outputs['student'], outputs['teacher'], rtol=1e-3, atol=1e-3)
    else:  # the teacher attends to finer keys than the reference grid
        assert outputs['student'].shape == outputs['teacher'].shape


def test_theta_is_the_least_squares_solution():
    """One round, hardly any ridge, against ``torch.linalg.lstsq`` on what the observer of scores gives."""
    teacher = build_teacher()
    student, twin, _ = build_student(teacher)
    seen = []
    for block in twin.stages[3].blocks:
        block.attn.keep_scores = True
    twin.score_observer = lambda attn, scores: seen.append(scores)
    x = images(count=4)
    twin(x)
    twin.score_observer = None
    a, s = (scores.map.unflatten(-1, (3, 16)) for scores in seen)
    a, s = (t - t.mean(-1, keepdim=True) for t in (a, s))
    order = find_order(a, s)
    fit_transforms(student.backbone, twin, [x], rounds=1, ridge=1e-6)
    layer = student.backbone.stages[3].blocks[1].attn
    delta = layer.delta_theta.double()
    rows, target = a.reshape(-1, 16).double(), s[:, :, order].reshape(-1, 16).double()
    expected = torch.linalg.lstsq(rows, target - rows, rcond=1e-5, driver='gelsd').solution
    torch.testing.assert_close(rows @ delta.T, rows @ expected, rtol=1e-3, atol=1e-3)
    assert delta.sum(1).abs().max() < 1e-4  # nothing happens to a constant


def find_order(a, s):
    """The best of all orders of the heads, by trying them."""
    orders = [list(order) for order in permutations(range(a.shape[2]))]
    return min(orders, key=lambda order: float((a - s[:, :, order]).square().sum()))


def test_transforms_bring_scores_nearer():
    teacher = build_teacher()
    student, twin, _ = build_student(teacher)
    fits = fit_transforms(student.backbone, twin, [images(96), images(160)])
    assert [fit.name for fit in fits] == ['stages.2.blocks.1', 'stages.2.blocks.2', 'stages.3.blocks.1']
    assert all(fit.after < 0.8 * fit.before for fit in fits)
    assert not any(layer.keep_scores for stage in twin.stages for layer in [stage.blocks[-1].attn])


def test_names_of_the_vanilla_twin_are_known():
    teacher = build_teacher()
    found = convert_pvt_v2(teacher.backbone.state_dict())
    assert found.layout == 'mmlavit'
    missing, unexpected = LaViT(TOY).load_state_dict(found.backbone, strict=False)
    assert all('.attn.q.' in name for name in unexpected)
    assert all('.delta_' in name or '.residual.' in name for name in missing)


class Classifier(nn.Module):
    """As far as copying goes."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(32, 2)


def build_plain(layers=(2, 3), seed=0, **kwargs):
    """A ViT and its copy with less attention, from the ViT's weights."""
    load_toolbox('mmpretrain')
    torch.manual_seed(seed)
    teacher = Classifier(MODELS.build(VIT))
    for parameter in teacher.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    teacher.eval()
    student = Classifier(WithLessAttention(VIT, layers, **kwargs))
    student.eval()
    return teacher.requires_grad_(False), student.requires_grad_(False)


def test_what_a_plain_transformer_copies():
    teacher, student = build_plain()
    twin = find_twin(student.backbone, teacher.backbone)
    assert twin is teacher.backbone
    copied = copy_teacher(student, teacher.state_dict(), twin)
    state = student.state_dict()
    assert [name for name in state if name not in copied] == [
        f'backbone.backbone.layers.{i}.attn.delta_{which}' for i in (2, 3) for which in ('theta', 'psi')
    ]
    source = teacher.state_dict()
    assert torch.equal(state['head.weight'], source['head.weight'])
    assert torch.equal(
        state['backbone.backbone.layers.2.attn.v.weight'], source['backbone.layers.2.attn.qkv.weight'][64:]
    )
    assert torch.equal(state['backbone.backbone.layers.1.attn.qkv.weight'], source['backbone.layers.1.attn.qkv.weight'])


def test_plain_transformers_that_are_no_twin():
    teacher, student = build_plain()
    load_toolbox('mmpretrain')
    for other in (
        MODELS.build({**VIT, 'patch_size': 8}),
        MODELS.build({**VIT, 'arch': {**VIT['arch'], 'num_layers': 5}}),
        MODELS.build({**VIT, 'arch': {**VIT['arch'], 'num_layers': 3}}),
        MODELS.build({**VIT, 'arch': {**VIT['arch'], 'num_heads': 4}}),
        MODELS.build({**VIT, 'qkv_bias': False}),
        LaViT(TOY),
        student.backbone,
    ):
        assert find_twin(student.backbone, other) is None


@pytest.mark.parametrize('later', ['fixed', 'biased', 'shared', 'uniform', 'none'])
def test_plain_controls_as_students(later):
    teacher, _ = build_plain()
    student = Classifier(WithLessAttentionControl({**VIT, 'final_norm': False}, (2, 3), later=later))
    assert find_twin(student.backbone, teacher.backbone) is teacher.backbone
    copied = copy_teacher(student, teacher.state_dict(), teacher.backbone)
    own = {name.rpartition('attn.')[2] for name in student.state_dict() if name not in copied}
    assert own == ({'fixed'} if later in ('fixed', 'biased') else set())


@pytest.mark.parametrize('later', ['fixed', 'shared', 'uniform', 'none'])
def test_controls_as_students(later):
    cfg = dict(type='LaViTControl', arch=TOY, later=later)
    student = Classifier(MODELS.build(cfg))
    teacher = Classifier(LaViT(TOY, num_va_layers=TOY['depths'], attention_residual=False)).eval()
    twin = build_twin(cfg, teacher.state_dict())
    assert type(twin) is LaViT and gives_the_same(twin, teacher.backbone)
    copied = copy_teacher(student, teacher.state_dict(), twin)
    own = {name for name in student.state_dict() if name not in copied and '.residual.' not in name}
    assert {name.rpartition('attn.')[2] for name in own} == ({'fixed'} if later == 'fixed' else set())


@pytest.mark.parametrize(('maps', 'qk_norm'), [(False, False), (True, False), (False, True)])
def test_plain_transformers_of_timm(maps, qk_norm):
    """features_only=True puts one more module around it; norms of queries and keys go with these."""
    timm = dict(
        type='mmpretrain.TIMMBackbone',
        model_name='vit_tiny_patch16_224',
        img_size=64,
        embed_dim=32,
        depth=4,
        num_heads=2,
        qk_norm=qk_norm,
    )
    load_toolbox('mmpretrain')
    student = Classifier(WithLessAttention(dict(timm, features_only=True), (2, 3)))
    teacher = Classifier(MODELS.build(dict(timm, features_only=True) if maps else dict(timm, num_classes=0)))
    assert find_twin(student.backbone, teacher.backbone) is teacher.backbone
    copied = copy_teacher(student, teacher.state_dict(), teacher.backbone)
    state, source = student.state_dict(), find_transformer(teacher.backbone).state_dict()
    name = 'backbone.backbone.timm_model.model.blocks.3.attn.v.weight'
    assert name in copied and torch.equal(state[name], source['blocks.3.attn.qkv.weight'][64:])


@pytest.mark.parametrize('size', [64, 96], ids=['own size', 'another size'])
def test_a_plain_layer_like_the_one_before(size):
    """Layer 2 gets the queries and keys of layer 1, with its heads exchanged, and the same tokens."""
    teacher, student = build_plain(layers=(2,))
    before, layer = teacher.backbone.layers[1], teacher.backbone.layers[2]
    for linear in (before.attn.proj, before.ffn.layers[0][0], before.ffn.layers[1]):
        linear.weight.zero_()
        linear.bias.zero_()
    layer.ln1.load_state_dict(before.ln1.state_dict())
    swapped = torch.arange(32).roll(16)
    for name in ('weight', 'bias'):
        ours, theirs = getattr(layer.attn.qkv, name), getattr(before.attn.qkv, name)
        ours[:32], ours[32:64] = 2 * theirs[:32][swapped], theirs[32:64][swapped]
    copy_teacher(student, teacher.state_dict(), teacher.backbone)
    x = images(size)
    (fit,) = fit_transforms(student.backbone, teacher.backbone, [x], ridge=1e-9)
    assert fit.name == 'backbone.layers.2' and fit.before > 0.2 and fit.after < 1e-6
    if size == 64:
        torch.testing.assert_close(student.backbone(x), teacher.backbone(x), rtol=1e-3, atol=1e-3)


def test_chains_of_plain_layers():
    """Each run of converted layers starts from the scores of the vanilla layer before it."""
    teacher, student = build_plain(layers=(1, 3))
    copy_teacher(student, teacher.state_dict(), teacher.backbone)
    fits = fit_transforms(student.backbone, teacher.backbone, [images(64)])
    assert [fit.name for fit in fits] == ['backbone.layers.1', 'backbone.layers.3']
    assert all(fit.after < fit.before for fit in fits)
