"""The diagonality loss inside mmengine's training step."""

import os
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from mmengine.structures import BaseDataElement, PixelData
from mmseg.models import SegDataPreProcessor
from mmseg.structures import SegDataSample
from torch import nn

from mmlavit import DiagonalityLossHook, LaViT
from mmlavit.errors import ConfigError
from mmlavit.models import LessAttention, diagonality_loss, score_statistics, square_scores

TOY = dict(
    embed_dims=(8, 16, 16, 24), num_heads=(1, 2, 2, 3), depths=(2, 2, 3, 2), num_va_layers=(1, 1, 1, 1),
    mlp_ratios=(2, 2, 2, 2),
)  # fmt: skip


class Regressor(BaseModel):
    """Smallest model of the mmengine kind: the mean of the last map is fitted to zero."""

    def __init__(self, **kwargs):
        super().__init__()
        self.backbone = LaViT(TOY, drop_path_rate=0.0, out_indices=(3,), **kwargs)
        self.head = nn.Linear(24, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        out = self.head(self.backbone(inputs)[-1].mean(dim=(2, 3)))
        return dict(loss_fit=out.square().mean()) if mode == 'loss' else out


def build(seed=0, **kwargs):
    torch.manual_seed(seed)
    model = Regressor(**kwargs).double().train()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def attached(model, weight=0.5):
    hook = DiagonalityLossHook(weight=weight)
    hook.attach(model)
    return hook


def batch(count=2, size=(96, 160)):
    return torch.randn(count, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def test_loss_is_the_mean_over_less_attention_layers():
    model, x, seen = build(), batch(), []
    attached(model)
    losses = model(x, None, mode='loss')

    def observe(attn, scores):
        if isinstance(attn, LessAttention):
            key_grid = attn.reduction.reduced_grid(scores.grid)
            seen.append(diagonality_loss(square_scores(scores, key_grid, attn.reference_grid)))

    model.backbone.score_observer = observe
    model.backbone(x)
    assert len(seen) == 5  # depths less vanilla layers
    torch.testing.assert_close(losses['loss_diag'], 0.5 * sum(seen) / 5)
    assert set(losses) == {'loss_fit', 'loss_diag', 'la_magnitude', 'la_entropy'}
    assert not losses['la_entropy'].requires_grad


def test_padding_of_each_toolbox():
    """mmseg's data preprocessor names it in another way than mmdet's."""
    model, sizes = build(), ((96, 160), (48, 160))
    attached(model)
    images = [batch(1, size)[0] for size in sizes]
    maps = [PixelData(data=torch.zeros(1, *size, dtype=torch.long)) for size in sizes]
    samples = [SegDataSample(gt_sem_seg=label, metainfo=dict(img_shape=label.shape)) for label in maps]
    preprocessor = SegDataPreProcessor(size=sizes[0], pad_val=0, seg_pad_val=255)
    data = preprocessor(dict(inputs=images, data_samples=samples), training=True)
    of_mmdet = [BaseDataElement(metainfo=dict(img_shape=size, batch_input_shape=sizes[0])) for size in sizes]
    x = data['inputs'].double()
    found, wanted, other = (
        model(x, samples, mode='loss')['loss_diag'] for samples in (data['data_samples'], of_mmdet, None)
    )
    assert torch.equal(found, wanted) and not torch.equal(found, other)


def test_padding_of_the_batch_does_not_count():
    """Sizes of the images are those of the data samples; the second is half as high as the batch."""
    model, x, seen = build(), batch(), []
    shapes = ((96, 160), (48, 160))
    marked = dict(batch_input_shape=(96, 160))  # by mmdet's data preprocessor
    samples = [BaseDataElement(metainfo=dict(img_shape=shape, **marked)) for shape in shapes]
    attached(model)
    losses = model(inputs=x, data_samples=samples, mode='loss')

    def observe(attn, scores):
        if isinstance(attn, LessAttention):
            square = square_scores(scores, (3, 5), attn.reference_grid)  # 96x160 at stride 32
            inside = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.5, 0.0]]).repeat_interleave(5, dim=1)
            seen.append(diagonality_loss(square, inside))

    model.backbone.score_observer = observe
    model.backbone(x)
    torch.testing.assert_close(losses['loss_diag'], 0.5 * sum(seen) / 5)
    assert losses['loss_diag'] != model(x, None, mode='loss')['loss_diag']


class Taught(Regressor):
    """A student that learns from two batches, and from a teacher without gradients, as mmdet's SoftTeacher does."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.teacher = LaViT(TOY, drop_path_rate=0.0)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if mode != 'loss':
            return super().forward(inputs, data_samples, mode)
        with torch.no_grad():
            self.teacher(inputs['teacher'])
        return {f'loss_{name}': super(Taught, self).forward(inputs[name], None, 'loss')['loss_fit'] for name in 'ab'}


def test_several_batches_and_a_teacher():
    """Each batch has its own padding, and the teacher does not count."""
    torch.manual_seed(0)
    model = Taught().double().train()
    single = Regressor().double().train()
    single.load_state_dict(model.state_dict(), strict=False)
    attached(model), attached(single)
    inputs = dict(a=batch(), b=batch(size=(64, 96)), teacher=batch(size=(64, 64)))
    shapes = dict(a=[(96, 160), (48, 160)], b=[(64, 64), (64, 96)], teacher=[(64, 64), (32, 64)])
    samples = {
        name: [
            BaseDataElement(metainfo=dict(img_shape=shape, batch_input_shape=inputs[name].shape[-2:])) for shape in some
        ]
        for name, some in shapes.items()
    }
    wanted = [single(inputs[name], samples[name], mode='loss')['loss_diag'] for name in 'ab']
    given = model(inputs, samples, mode='loss')
    torch.testing.assert_close(given['loss_diag'], sum(wanted) / 2)
    assert wanted[0] != single(inputs['a'], None, mode='loss')['loss_diag']
    with torch.no_grad():  # nothing learns, so all counts
        torch.testing.assert_close(single(inputs['a'], samples['a'], mode='loss')['loss_diag'], wanted[0])


@pytest.mark.parametrize(
    'samples',
    [
        torch.arange(2),
        BaseDataElement(),
        [BaseDataElement(), BaseDataElement()],
        [BaseDataElement(metainfo=dict(img_shape=(32, 32))) for _ in range(2)],
    ],
    ids=['labels', 'one sample', 'nothing known', 'size of another image'],
)
def test_samples_that_tell_of_no_padding(samples):
    model = build()
    attached(model)
    expected = model(batch(), None, mode='loss')['loss_diag']
    assert torch.equal(model(batch(), samples, mode='loss')['loss_diag'], expected)


def test_total_loss_and_log():
    model = build()
    attached(model)
    total, log = model.parse_losses(model(batch(), None, mode='loss'))
    torch.testing.assert_close(total, log['loss_fit'] + log['loss_diag'])
    assert {'loss_diag', 'la_magnitude', 'la_entropy'} < set(log)


def test_only_the_loss_mode_is_touched():
    model = build().eval()
    expected = model(batch())
    hook = attached(model)
    torch.testing.assert_close(model(batch()), expected, rtol=0, atol=0)
    hook.detach()
    assert set(model(batch(), None, mode='loss')) == {'loss_fit'}
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_a_failed_forward_leaves_nothing_behind():
    model = build()
    attached(model)
    with pytest.raises(RuntimeError):
        model(torch.zeros(2, 3, 64, 96, dtype=torch.float32), None, mode='loss')  # the model is float64
    assert model.backbone.score_observer is None
    first = model(batch(), None, mode='loss')['loss_diag']
    assert model(batch(), None, mode='loss')['loss_diag'] == first


def test_counted_once_with_checkpointing():
    results = []
    for with_cp in (False, True):
        model = build(with_cp=with_cp)
        attached(model)
        losses = model(batch(), None, mode='loss')
        (losses['loss_fit'] + losses['loss_diag']).backward()
        results.append((losses['loss_diag'], {n: p.grad for n, p in model.named_parameters()}))
    torch.testing.assert_close(results[0], results[1])


def test_falls_when_trained():
    model = build().float()
    attached(model, weight=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    x, values = batch().float(), []
    for _ in range(25):
        optimizer.zero_grad()
        loss = model(x, None, mode='loss')['loss_diag']
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.7 * values[0]


def test_gradient_accumulation_equals_one_large_step():
    x = batch(4)
    steps = []
    for chunks in (1, 2):
        model = build()
        attached(model)
        optim = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), accumulative_counts=chunks)
        optim.initialize_count_status(model, 0, chunks)
        for part in x.chunk(chunks):
            model.train_step(dict(inputs=part, data_samples=None), optim)
        steps.append(dict(model.named_parameters()))
    torch.testing.assert_close(steps[0], steps[1])


def test_a_compiled_step_equals_a_plain_one():
    """As mmengine compiles it, with ``compile=True`` in a config; the second image is padded."""
    torch._dynamo.reset()
    marked, steps = dict(batch_input_shape=(96, 160)), []
    samples = [BaseDataElement(metainfo=dict(img_shape=shape, **marked)) for shape in ((96, 160), (48, 160))]
    for compiled in (False, True):
        model = build()
        attached(model)
        optim = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
        if compiled:
            model.train_step = torch.compile(model.train_step, backend='eager')
        logs = [model.train_step(dict(inputs=batch(), data_samples=samples), optim) for _ in range(2)]
        steps.append((logs, dict(model.named_parameters())))
    torch.testing.assert_close(steps[1], steps[0])


def test_bf16_autocast_computes_the_loss_in_float32():
    model = build().float()
    attached(model)
    x = batch().float()
    expected = model(x, None, mode='loss')['loss_diag']
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = model(x, None, mode='loss')['loss_diag']
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.15, atol=0)  # maps are rounded, as the processor does it


@pytest.mark.parametrize('model', [nn.Linear(2, 2), LaViT(TOY, num_va_layers=(2, 2, 3, 2))], ids=['none', 'vanilla'])
def test_a_model_without_less_attention_is_an_error(model):
    with pytest.raises(ValueError, match='no less-attention layer') as caught:
        DiagonalityLossHook().attach(model)
    assert '\n' not in str(caught.value)


def test_observers_of_a_user_come_back():
    model, seen = build(), []
    model.backbone.score_observer = lambda attn, scores: seen.append(attn)
    hook = attached(model)
    model(batch(), None, mode='loss')
    assert not seen
    model(batch())
    assert seen
    hook.detach()
    assert model.backbone.score_observer is not None


def test_layers_that_are_recomputed_without_our_knowing():
    """mmengine's ``activation_checkpointing``, which runs a module without gradients first."""
    model = build()
    attached(model)
    turn_on_activation_checkpointing(model, ['backbone.stages.2'])
    with pytest.raises(ConfigError, match='2 of the less-attention layers run without gradients at first'):
        model(batch().requires_grad_(), None, mode='loss')
    assert model.backbone.score_observer is None


def test_a_pass_without_the_backbone():
    model = build()
    attached(model)
    model.backbone.forward = lambda images: [torch.zeros(len(images), 24, 3, 5, dtype=torch.float64)]
    with pytest.raises(ConfigError, match='no less-attention layer ran'):
        model(batch(), None, mode='loss')


def test_a_model_that_is_trained_by_another():
    """mmpretrain's LoRAModel hands ``train_step`` on to the model in it, which calls itself."""
    model = build()
    hook = attached(model)
    with pytest.raises(ConfigError, match='training does not call Regressor, but a model inside of it'):
        hook.after_train_iter(SimpleNamespace(model=model), 0)
    model(batch(), None, mode='loss')
    hook.after_train_iter(SimpleNamespace(model=model), 0)


def test_statistics_leave_padding_out():
    """As the loss: what they are for the image alone, on keys that it has for itself."""
    square = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    inside = torch.tensor([[1.0] * 6, [1.0] * 4 + [0.0] * 2])
    found = score_statistics(square, inside)

    def entropy(rows):
        return torch.distributions.Categorical(logits=rows).entropy().mean()

    assert found.magnitude.item() == pytest.approx(
        (square[0].abs().mean() + square[1, :, :4, :4].abs().mean()).item() / 2
    )
    assert found.entropy.item() == pytest.approx((entropy(square[0]) + entropy(square[1, :, :4])).item() / 2)


@pytest.mark.parametrize('weight', [0, -1, '0.1', None, float('nan'), float('inf')])
def test_weight_must_be_positive(weight):
    with pytest.raises(ConfigError, match=f'weight must be a positive number, got {weight!r}'):
        DiagonalityLossHook(weight=weight)


def _ddp_worker(rank, port, path):
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE='2')
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', rank=rank, world_size=2)
    model = build()
    wrapped = MMDistributedDataParallel(model)
    hook = DiagonalityLossHook(weight=0.5)

    class Runner:
        pass

    runner = Runner()
    runner.model = wrapped
    hook.before_train(runner)
    optim = OptimWrapper(torch.optim.SGD(wrapped.parameters(), lr=0.1))
    log = wrapped.train_step(dict(inputs=batch(4).chunk(2)[rank], data_samples=None), optim)
    if rank == 0:
        torch.save((model.state_dict(), sorted(log)), path)
    torch.distributed.destroy_process_group()


def test_ddp_step_equals_the_single_process_step(tmp_path, free_port):
    model = build()
    attached(model)
    optim = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    model.train_step(dict(inputs=batch(4), data_samples=None), optim)
    mp.spawn(_ddp_worker, args=(free_port, str(tmp_path / 'state.pth')), nprocs=2)
    state, log = torch.load(tmp_path / 'state.pth', weights_only=True)
    assert 'loss_diag' in log
    torch.testing.assert_close(state, dict(model.state_dict()))
