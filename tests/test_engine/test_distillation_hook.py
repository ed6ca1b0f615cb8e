"""Distances to a teacher inside mmengine's training step."""

import pytest
import torch
import torch.nn.functional as F
from mmdet.models import DetDataPreprocessor
from mmdet.structures import DetDataSample
from mmengine.model import BaseDataPreprocessor, BaseModel, ImgDataPreprocessor
from torch import nn

from mmlavit import LaViT
from mmlavit.converters.less_attention import build_twin, gives_the_same
from mmlavit.engine.hooks import DistillationHook
from mmlavit.engine.hooks.distillation_hook import _run
from mmlavit.errors import ConfigError
from mmlavit.models.distillation import divergence, find_distances

TOY = dict(
    embed_dims=(8, 16, 16, 24), num_heads=(1, 2, 2, 3), depths=(1, 1, 3, 2), num_va_layers=(1, 1, 1, 1),
    mlp_ratios=(2, 2, 2, 2), key_grid=4, query_grids=(4, 4, 8, 4),
)  # fmt: skip


class Classifier(BaseModel):
    """Smallest model with backbone, neck and class scores; its own loss would ask for labels."""

    def __init__(self, neck=True, classes=5, preprocessor=None, **kwargs):
        super().__init__(preprocessor)
        self.backbone = LaViT(TOY, drop_path_rate=0.0, **kwargs)
        if neck:
            self.neck = nn.Conv2d(24, 6, 1)
        self.head = nn.Linear(24, classes)

    def loss(self, inputs, data_samples):
        raise AssertionError('labels were asked for')

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        maps = self.backbone(inputs)
        if hasattr(self, 'neck'):
            self.neck(maps[-1])
        return self.head(maps[-1].mean(dim=(2, 3)))


class OtherTeacher(BaseModel):
    """A network of another kind, of which only the class scores compare."""

    def __init__(self, classes=5):
        super().__init__(BaseDataPreprocessor())
        self.conv = nn.Conv2d(3, classes, 3)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.conv(inputs).mean(dim=(2, 3))


def build(seed, **kwargs):
    torch.manual_seed(seed)
    model = Classifier(**kwargs)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def build_teacher(**kwargs):
    return build(1, num_va_layers=TOY['depths'], attention_residual=False, **kwargs)


def attach(model, teacher, **kwargs):
    hook = DistillationHook({}, '', 'mmpretrain', **kwargs)
    hook.attach(model, teacher)
    return hook


def images(size=(64, 96)):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))


def relative(a, b):
    return (a - b).pow(2).mean() / b.var()


def blocks_of(backbone, x):
    """What goes into each block and comes out, and what its attention gives."""
    found = []

    def keep(module, args, output):
        found.append((args[0], args[1], output[0]))

    handles = [block.register_forward_hook(keep) for stage in backbone.stages for block in stage.blocks]
    maps = backbone(x)
    for handle in handles:
        handle.remove()
    return found, maps


def test_losses_are_the_literal_distances():
    model, teacher, x = build(0), build_teacher().eval(), images()
    attach(model, teacher)
    losses = model(x, None, mode='loss')
    ours, maps = blocks_of(model.backbone, x)
    theirs, wanted = blocks_of(teacher.backbone, x)
    expected = dict(
        loss_blocks=sum(relative(a[2], b[2]) for a, b in zip(ours, theirs)) / 7,
        loss_maps=sum(relative(a, b) for a, b in zip(maps, wanted)) / 4,
        loss_neck=relative(model.neck(maps[-1]), teacher.neck(wanted[-1])),
    )
    a, b = (m.head(f[-1].mean(dim=(2, 3))) for m, f in ((model, maps), (teacher, wanted)))
    p = b.softmax(1)
    expected['loss_logits'] = (p * (p.log() - F.log_softmax(a, 1))).sum(1).mean()
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)


def test_what_runs_between_losses_is_not_kept():
    """A validation in a training, and blocks that run once more in the backward pass."""
    model, teacher, x = build(0, with_cp=True), build_teacher(), images()
    hook = attach(model.train(), teacher)
    expected = model(x, None, mode='loss')
    sum(expected.values()).backward()
    with torch.no_grad():
        model(images((32, 64)), None)
        teacher(images((32, 64)), None)
    assert hook._records == ({}, {})
    torch.testing.assert_close(model(x, None, mode='loss'), expected)


@pytest.mark.parametrize(
    ('ours', 'theirs', 'blocks'), [((0, 1, 2), (0, 1, 2, 3), 5), ((0, 1, 2, 3), (1,), 2)], ids=['student', 'teacher']
)
def test_stages_that_both_have(ours, theirs, blocks):
    """One of them has fewer."""
    model, teacher, x = build(0, neck=False, out_indices=ours), build_teacher(neck=False, out_indices=theirs), images()
    for network in (model, teacher):
        network.head = nn.Identity()
    attach(model, teacher)
    losses = model(x, None, mode='loss')
    given, wanted = (blocks_of(network.backbone, x)[0] for network in (model, teacher))
    assert min(len(given), len(wanted)) == blocks
    expected = sum(relative(a[2], b[2]) for a, b in zip(given, wanted)) / blocks
    torch.testing.assert_close(losses['loss_blocks'], expected)
    if len(wanted) == blocks:
        with pytest.raises(ConfigError, match='layerwise_iters needs a LaViT as student, and a teacher'):
            attach(model, teacher, layerwise_iters=1)


def test_scores_of_one_class():
    """A sigmoid makes a probability of it."""
    a, b = torch.randn(2, 4, 1, 5, 6, generator=torch.Generator().manual_seed(0)).double().unbind()
    p, q = b.sigmoid(), a.sigmoid()
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    torch.testing.assert_close(divergence(a, b).double(), expected, rtol=1e-5, atol=1e-6)


class MultiLabelClsHead(nn.Linear):
    """As mmpretrain's: each class has a probability of its own."""


def test_scores_of_several_labels():
    """A sigmoid makes a probability of each, so that a shift of all scores is seen; softmax hides it."""
    model, teacher, x = build(0, neck=False), build_teacher(neck=False).eval(), images()
    for one in (model, teacher):
        one.head.__class__ = MultiLabelClsHead
    with torch.no_grad():
        a, b = (one.head(one.backbone(x)[-1].mean(dim=(2, 3))) for one in (model, teacher))
    p, q = b.sigmoid(), a.sigmoid()
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(1).mean()
    attach(model, teacher)
    torch.testing.assert_close(model(x, None, mode='loss')['loss_logits'].detach(), expected, rtol=1e-4, atol=1e-5)
    assert divergence(b + 5, b).abs() < 1e-5 and divergence(b + 5, b, sigmoid=True) > 1


@pytest.mark.parametrize('channels', [1, 5])
def test_images_of_other_channels(channels):
    """Neither the comparison of the backbones nor the way from one normalisation to another asks for three."""
    model, teacher = build(0, neck=False, in_channels=channels), build_teacher(neck=False, in_channels=channels).eval()
    twin = build_twin(dict(type='LaViT', arch=TOY, in_channels=channels), teacher.state_dict())
    assert gives_the_same(twin, teacher.backbone)
    if channels == 1:
        teacher.data_preprocessor = ImgDataPreprocessor((2.0,), (4.0,))
    seen = []
    teacher.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    attach(model, teacher)
    x = torch.rand(2, channels, 64, 64)
    assert {'loss_blocks', 'loss_maps', 'loss_logits'} == model(x, None, mode='loss').keys()
    torch.testing.assert_close(seen[0], (x - 2) / 4 if channels == 1 else x)


def test_layers_alone_see_their_teachers_input():
    model, teacher, x = build(0, attention_residual=False), build_teacher().eval(), images()
    hook = attach(model, teacher, layerwise_iters=1)
    hook._layerwise = True
    losses = model(x, None, mode='loss')
    assert losses.keys() == {'loss_attention'}
    distances, taught = [], iter(blocks_of(teacher.backbone, x)[0])
    for stage, other in zip(model.backbone.stages, teacher.backbone.stages):
        scores = None
        for j, (block, vanilla) in enumerate(zip(stage.blocks, other.blocks)):
            tokens, grid, _ = next(taught)
            y = block.norm1(tokens)
            out, scores = block.attn(y, grid) if j == 0 else block.attn(y, scores)
            distances.append(relative(out, vanilla.attn(vanilla.norm1(tokens), grid)[0]))
    torch.testing.assert_close(losses['loss_attention'], sum(distances) / 7)
    losses['loss_attention'].backward()
    assert model.backbone.stages[2].blocks[1].attn.delta_theta.grad.abs().sum() > 0
    assert model.backbone.stages[2].blocks[1].mlp.fc1.weight.grad is None


def test_the_teacher_itself_has_no_distance():
    model, teacher = build_teacher(), build_teacher()
    attach(model, teacher)
    losses = model(images(), None, mode='loss')
    assert len(losses) == 4
    assert all(value.detach().abs() < 1e-6 for value in losses.values())


def test_maps_are_compared_at_their_places():
    """All maps of a plain transformer have one shape; of different numbers of maps, only a shape of its own tells."""
    maps = list(torch.randn(4, 2, 8, 5, 6, generator=torch.Generator().manual_seed(0)))
    record = dict(backbone=maps)
    assert find_distances(record, record)['maps'] == 0
    other = [maps[1], maps[0], torch.randn(2, 8, 3, 3), torch.randn(2, 9, 5, 6)]
    expected = (relative(maps[1], maps[0]) + relative(maps[0], maps[1])) / 2
    torch.testing.assert_close(find_distances(dict(backbone=other), record)['maps'], expected)
    assert find_distances(dict(backbone=maps[:2]), record) == {}
    assert find_distances(dict(backbone=other[1:]), dict(backbone=[*other[2:]]))['maps'] == 0
    # Levels P2 to P4 of one neck, and P3 to P5 of another.
    levels = [torch.randn(2, 8, 32 >> i, 32 >> i) for i in range(4)]
    assert find_distances(dict(neck=levels[:3]), dict(neck=levels[1:]))['neck'] == 0


def test_maps_beside_tokens():
    """In nested sequences, as the transformers of the toolboxes give them."""
    ours, theirs = torch.rand(2, 8, 4, 4), torch.rand(2, 8, 4, 4)
    tokens = torch.rand(2, 8), torch.rand(2, 8)
    found = find_distances(dict(backbone=([ours, *tokens],)), dict(backbone=((theirs, tokens),)))
    assert found.keys() == {'maps'}
    torch.testing.assert_close(found['maps'], relative(ours, theirs))
    assert find_distances(dict(backbone=(ours,)), dict(backbone=(tokens,))) == {}


def test_heads_that_need_labels():
    """Of mmseg's segmentors; maps are compared all the same."""
    from mmseg.models.decode_heads import Mask2FormerHead, PointHead

    class Segmentor(nn.Module):
        def __init__(self, head):
            super().__init__()
            nn.Module.__init__(head)
            self.decode_head, self.seen = nn.ModuleList([head]) if isinstance(head, PointHead) else head, []

        def extract_feat(self, inputs):
            self.seen.append(inputs)

        def forward(self, *args, **kwargs):
            raise AssertionError('heads were asked')

    for kind in (Mask2FormerHead, PointHead):
        model = Segmentor(kind.__new__(kind))
        assert _run(model, torch.zeros(1), None) is None and len(model.seen) == 1


def test_blocks_with_other_tokens():
    """A teacher with one more extra token."""
    student, teacher = ([(None, None, torch.randn(2, tokens, 8))] for tokens in (17, 18))
    assert find_distances(dict(blocks=student), dict(blocks=teacher)) == {}


def test_teacher_stays_as_it_is():
    model, teacher = build(0), build_teacher()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    hook = attach(model, teacher)
    names = set(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sum(model(images(), None, mode='loss').values()).backward()
    optimizer.step()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert set(model.state_dict()) == names  # an ordinary checkpoint
    hook.detach()
    with pytest.raises(AssertionError, match='labels were asked for'):
        model(images(), None, mode='loss')


def test_another_network_teaches_its_class_scores():
    model = build(0, neck=False)
    attach(model, OtherTeacher())
    assert model(images(), None, mode='loss').keys() == {'loss_logits'}


def test_a_lavit_of_other_sizes_teaches_its_class_scores():
    model, teacher = build(0, neck=False), build(1, neck=False)
    wider = {**TOY, 'embed_dims': (8, 16, 24, 36)}
    teacher.backbone, teacher.head = LaViT(wider), nn.Linear(36, 5)
    attach(model, teacher)
    # The first two stages agree.
    assert model(images(), None, mode='loss').keys() == {'loss_maps', 'loss_logits'}


def test_weights():
    model, teacher = build(0), build_teacher()
    attach(model, teacher)
    plain = model(images(), None, mode='loss')
    attach(model, teacher, weights=dict(neck=0, maps=2.5))
    weighted = model(images(), None, mode='loss')
    assert weighted.keys() == plain.keys() - {'loss_neck'}
    torch.testing.assert_close(weighted['loss_maps'], 2.5 * plain['loss_maps'])


def test_teacher_gets_images_as_it_wants_them():
    """A student of RGB by ImageNet's statistics, a teacher of BGR by others."""
    model = build(0, neck=False, preprocessor=ImgDataPreprocessor((120.0, 110, 100), (60.0, 50, 40), bgr_to_rgb=True))
    teacher = OtherTeacher()
    teacher.data_preprocessor = ImgDataPreprocessor((127.0, 127, 127), (128.0, 128, 128))
    raw = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    seen = []
    teacher.conv.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    attach(model, teacher)
    model(model.data_preprocessor(dict(inputs=list(raw)))['inputs'], None, mode='loss')
    expected = teacher.data_preprocessor(dict(inputs=list(raw)))['inputs']
    torch.testing.assert_close(seen[0], expected, rtol=1e-5, atol=1e-5)


def test_padding_stays_what_it_is():
    """mmdet pads normalised images, so by zero for the teacher, too."""
    ours = DetDataPreprocessor((120.0, 110, 100), (60.0, 50, 40), bgr_to_rgb=True)
    model, teacher = build(0, neck=False, preprocessor=ours), OtherTeacher()
    teacher.data_preprocessor = DetDataPreprocessor((127.0, 127, 127), (128.0, 128, 128))
    generator, seen = torch.Generator().manual_seed(0), []
    shapes = ((64, 96), (64, 32), (32, 64))
    raw = [torch.randint(0, 256, (3, *shape), generator=generator, dtype=torch.uint8) for shape in shapes]
    teacher.conv.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    attach(model, teacher)

    def batch():
        samples = [DetDataSample(metainfo=dict(img_shape=shape)) for shape in shapes]
        return dict(inputs=list(raw), data_samples=samples)

    model(**ours(batch()), mode='loss')
    expected = teacher.data_preprocessor(batch())['inputs']
    assert not expected[1, :, :, 32:].any()
    torch.testing.assert_close(seen[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(weights=dict(map=1)), 'expected attention, blocks, maps, neck, logits'),
        (dict(layerwise_iters=-1), 'must be integers, 0 or more, got -1 and 0'),
        (dict(fit_images=None), 'must be integers, 0 or more, got 0 and None'),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        DistillationHook({}, '', 'mmdet', **arguments)


def test_nothing_to_compare():
    model = build(0)
    attach(model, OtherTeacher(classes=7))
    with pytest.raises(ConfigError, match='nothing in common'):
        model(images(), None, mode='loss')
    with pytest.raises(ConfigError, match='layerwise_iters needs a LaViT as student, and a teacher'):
        attach(model, OtherTeacher(), layerwise_iters=3)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(weights=dict(maps=-1)), r"weights\['maps'\] must be in \[0, inf\), got -1"),
        (dict(weights=dict(maps='much')), r"weights\['maps'\] must be a finite number, got 'much'"),
        (dict(weights=dict(attention=0), layerwise_iters=5), 'trains by the loss attention, whose weight is 0'),
    ],
)
def test_weights_out_of_their_range(options, message):
    with pytest.raises(ConfigError, match=message):
        DistillationHook(teacher=dict(type='A'), checkpoint='a.pth', scope='mmdet', **options)
