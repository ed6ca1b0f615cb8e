"""Numbers that are not finite end a training before they reach its weights, with the images and the module."""

import copy
import itertools
import os
from functools import partial
from types import SimpleNamespace

import pytest
import synthetic
import torch
import torch.multiprocessing as mp
from mmengine.logging import MessageHub
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.structures import BaseDataElement
from torch import nn

from mmlavit import CheckNumbersHook
from mmlavit.engine.numbers import image_names
from mmlavit.errors import ConfigError, UserError


class Root(nn.Module):
    """Finite, with a derivative that is not."""

    def forward(self, x):
        return x + (0 * x).sqrt()


class Net(BaseModel):
    """Two convolutions, a BatchNorm, and what a test puts between them; the data preprocessor only stacks."""

    def __init__(self, middle=None):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.middle = middle or nn.ReLU(inplace=True)
        self.last = nn.Conv2d(4, 1, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, inputs, data_samples=None, mode='loss'):
        x = self.dropout(self.last(self.middle(self.norm(self.stem(inputs)))))
        return dict(loss_fit=x.square().mean(), loss_other=0.1 * x.abs().mean(), la_magnitude=x.detach().mean())


class Stack(nn.Module):
    def forward(self, data, training=False):
        return dict(inputs=torch.stack(data['inputs']), data_samples=data['data_samples'])


def sample(name):
    return BaseDataElement(metainfo=dict(img_path=name))


def make_batch(number, bad=None, value=float('nan')):
    generator = torch.Generator().manual_seed(number)
    images = [torch.rand(1, 5, 6, generator=generator) for _ in range(3)]
    if bad is not None:
        images[bad][0, 2, 3] = value
    return dict(inputs=images, data_samples=[sample(f'{number}/{i}.png') for i in range(3)])


class Run:
    """As much of a Runner as the hook sees."""

    numbers = itertools.count()

    def __init__(self, model, hook=None, accumulate=1, wrapper=OptimWrapper, fused=False):
        model.data_preprocessor = Stack()
        self.model = model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
        self.optim_wrapper = wrapper(optimizer, accumulative_counts=accumulate, clip_grad=dict(max_norm=5))
        self.hook, self.iter = hook, 0
        self.step = self.optim_wrapper.step
        self.message_hub = MessageHub.get_instance(f'test_check_numbers_{next(self.numbers)}')
        self.warnings = []
        self.logger = SimpleNamespace(warning=self.warnings.append)

    def __call__(self, batches, seed=0):
        torch.manual_seed(seed)
        if self.hook:
            self.hook.before_train(self)
        for batch in batches:
            if self.hook:
                self.hook.before_train_iter(self, self.iter, batch)
            outputs = self.model.train_step(batch, self.optim_wrapper)
            if self.hook:
                self.hook.after_train_iter(self, self.iter, batch, outputs)
            self.iter += 1
        if self.hook:
            self.hook.after_train(self)
        return self


def state_of(run):
    return copy.deepcopy(run.model.state_dict())


def build(middle=None, seed=0):
    torch.manual_seed(seed)
    return Net(middle)


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize('action', ['stop', 'skip'])
@pytest.mark.parametrize('accumulate', [1, 2])
def test_nothing_changes_as_long_as_all_is_finite(action, accumulate):
    batches = [make_batch(i) for i in range(6)]
    plain = Run(build(), accumulate=accumulate)(batches)
    hooked = Run(build(), CheckNumbersHook(action), accumulate=accumulate)(batches)
    assert_equal(state_of(plain), state_of(hooked))
    assert not hooked.warnings and hooked.optim_wrapper.step == hooked.step


def test_an_image_that_is_not_finite():
    run = Run(build(), CheckNumbersHook())
    run([make_batch(0)])
    before = dict(run.model.named_parameters())
    before = {name: value.clone() for name, value in before.items()}
    with pytest.raises(UserError) as stopped:
        run([make_batch(1, bad=2)])
    line = str(stopped.value)
    assert line.startswith('iteration 2: loss_fit is nan, loss_other is nan, first in the images ')
    assert 'images: 1/2.png;' in line and '\n' not in line
    assert all(torch.equal(value, before[name]) for name, value in run.model.named_parameters())


class Log(nn.Module):
    def forward(self, x):
        return x.log()


@pytest.mark.parametrize(
    ('middle', 'expected'),
    [
        (Log(), 'loss_fit is nan, loss_other is nan, first in middle (Log)'),
        # The innermost module is named.
        (nn.Sequential(nn.ReLU(), nn.Sequential(Log())), 'first in middle.1.0 (Log)'),
        # Finite forwards, but the derivative of a square root at 0 is not.
        (nn.Sequential(nn.ReLU(), Root()), 'gradients are not finite, first in middle.1 (Root)'),
    ],
    ids=['forward', 'innermost', 'backward'],
)
def test_the_first_offending_module(middle, expected):
    with pytest.raises(UserError) as stopped:
        Run(build(middle), CheckNumbersHook())([make_batch(0)])
    assert expected in str(stopped.value)
    assert 'images: 0/0.png, 0/1.png, 0/2.png;' in str(stopped.value)


def test_gradients_that_cannot_be_squared():
    """Finite themselves, they would stay in Adam's second moments as infinity."""
    model = build(nn.Identity())
    model.last.weight.data.mul_(1e13)
    with pytest.raises(UserError, match=r'squares of \d+ gradients are not finite \(of stem.weight\)'):
        Run(model, CheckNumbersHook())([make_batch(0)])


class Between(nn.Module):
    """Its own code is at fault, not a child's; one user of the tensor is innocent."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.second(x) + self.function(self.first(x))


@pytest.mark.parametrize('function', [torch.log, lambda x: x + (0 * x).sqrt()], ids=['forward', 'backward'])
def test_code_between_modules(function):
    with pytest.raises(UserError, match=r'first in middle \(Between\)'):
        Run(build(Between(function)), CheckNumbersHook())([make_batch(0)])


def test_weights_that_came_in_so():
    model = build()
    model.last.weight.data.fill_(float('inf'))
    with pytest.raises(UserError, match='iteration 1: a weight is not finite, first in last.weight, before this step'):
        Run(model, CheckNumbersHook())([make_batch(0)])


@pytest.mark.parametrize('accumulate', [1, 2])
def test_skipping_leaves_weights_and_statistics_as_they_were(accumulate):
    """As a training that never saw the batch, or the step it was part of."""
    bad = make_batch(9, bad=0, value=float('inf'))
    step = [bad] if accumulate == 1 else [bad, make_batch(8)]
    before, after = [make_batch(0), make_batch(1)], [make_batch(2), make_batch(3)]
    run = Run(build(nn.Identity()), CheckNumbersHook('skip'), accumulate)
    run.model.dropout.p = 0.0  # the other training draws less
    run([*before, *step, *after])
    other = Run(build(nn.Identity()), None, accumulate)
    other.model.dropout.p = 0.0
    other([*before, *after])
    got, expected = state_of(run), state_of(other)
    if accumulate == 2:  # the good half of the step was seen by the BatchNorm
        for key in ('norm.running_mean', 'norm.running_var', 'norm.num_batches_tracked'):
            del got[key], expected[key]
    assert_equal(got, expected)
    (line, summary) = run.warnings
    assert line.startswith('iteration 3: ') and line.endswith('images: 9/0.png; this step is left out')
    assert summary == f'CheckNumbersHook: skipped_steps 1 after {4 + accumulate} iterations'
    assert run.message_hub.get_scalar('train/skipped_steps').current() == 1


def test_counting_goes_on_after_a_resume():
    first = Run(build(nn.Identity()), CheckNumbersHook('skip'))
    first([make_batch(0, bad=1), make_batch(1), make_batch(2, bad=0)])
    run = Run(build(nn.Identity()), CheckNumbersHook('skip'))
    run.message_hub, run.iter = first.message_hub, first.iter  # as mmengine restores both from a checkpoint
    run([make_batch(3), make_batch(4, bad=2)])
    assert run.message_hub.get_scalar('train/skipped_steps').current() == 3
    assert run.warnings[-1] == 'CheckNumbersHook: skipped_steps 3 after 5 iterations'


class Matching(nn.Module):
    """Raises, as SciPy's assignment in DETR, at what is not finite; and at each batch, if it is broken."""

    broken = False

    def forward(self, x):
        if self.broken or not x.isfinite().all():
            raise ValueError('matrix contains invalid numeric entries')
        return x


def test_a_forward_that_fails_at_such_numbers():
    before, bad = make_batch(0), make_batch(9, bad=1)
    with pytest.raises(UserError) as stopped:
        Run(build(Matching()), CheckNumbersHook())([before, bad])
    line = str(stopped.value)
    assert line.startswith('iteration 2: the loss cannot be computed (ValueError: matrix contains invalid numeric ent')
    assert 'first in the images themselves; images: 9/1.png;' in line
    assert isinstance(stopped.value.__context__, ValueError)


@pytest.mark.parametrize('accumulate', [1, 2])
def test_skipping_a_forward_that_fails(accumulate):
    batches = [make_batch(i) for i in range(2 * accumulate)]
    bad = [make_batch(9, bad=1)] if accumulate == 1 else [make_batch(8), make_batch(9, bad=1)]
    run = Run(build(Matching()), CheckNumbersHook('skip'), accumulate)
    run.model.dropout.p = 0.0
    run([*batches[:accumulate], *bad, *batches[accumulate:]])
    other = Run(build(Matching()), None, accumulate)
    other.model.dropout.p = 0.0
    other(batches)
    got, expected = state_of(run), state_of(other)
    for key in ('norm.running_mean', 'norm.running_var', 'norm.num_batches_tracked') if accumulate == 2 else ():
        del got[key], expected[key]
    assert_equal(got, expected)
    assert run.warnings[0].endswith('this step is left out') and 'train_step' not in vars(run.model)


def test_an_error_that_is_about_something_else():
    run = Run(build(Matching()), CheckNumbersHook('skip'))
    run.model.middle.broken = True
    with pytest.raises(ValueError, match='^matrix contains'):
        run([make_batch(0)])


def test_skipping_draws_what_it_would_have_drawn():
    """The second run of a batch does not change the random numbers of what follows."""
    drawn = []
    for bad in (None, 1):
        run = Run(build(nn.Identity()), CheckNumbersHook('skip'))
        run([make_batch(0), make_batch(1, bad=bad)], seed=3)
        drawn.append(torch.rand(4))
    assert torch.equal(*drawn)


def test_skipping_has_an_end():
    with pytest.raises(UserError, match='this is step 3 in a row that had to be left out'):
        Run(build(), CheckNumbersHook('skip', limit=3))([make_batch(i, bad=0) for i in range(5)])


class ScaledWrapper(OptimWrapper):
    """AmpOptimWrapper's steps, on the CPU."""

    def __init__(self, *args, scale=2.0**10, **kwargs):
        super().__init__(*args, **kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=scale, growth_interval=1000)

    def backward(self, loss, **kwargs):
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs):
        self.loss_scaler.unscale_(self.optimizer)
        self._clip_grad()
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()


def huge_scale(*args, **kwargs):
    return ScaledWrapper(*args, scale=2.0**127, **kwargs)


class Steep(nn.Module):
    """Gradients that overflow float32 until the scale has been halved a few times."""

    def forward(self, x):
        return x * 500.0


def test_overflow_is_counted():
    run = Run(build(Steep()), CheckNumbersHook(), wrapper=huge_scale)([make_batch(i) for i in range(30)])
    count = run.message_hub.get_scalar('train/overflows').current()
    halved = 127 - torch.tensor(run.optim_wrapper.loss_scaler.get_scale()).log2()
    assert 0 < count < 25 and count == halved
    assert run.warnings == [f'CheckNumbersHook: overflows {count:,} after 30 iterations']


def test_overflow_of_a_fused_optimizer():
    """It leaves the step out itself. The count is the same, and so is the end."""
    counts = []
    for fused in (False, True):
        run = Run(build(Steep()), CheckNumbersHook(), wrapper=huge_scale, fused=fused)(
            [make_batch(i) for i in range(30)]
        )
        counts.append(run.message_hub.get_scalar('train/overflows').current())
    assert counts[0] == counts[1] > 0
    model = build(nn.Sequential(nn.ReLU(), Root()))
    run = Run(model, CheckNumbersHook(limit=4), wrapper=ScaledWrapper, fused=True)
    with pytest.raises(UserError, match='this is step 4 in a row'):
        run([make_batch(i) for i in range(9)])


def test_overflow_that_does_not_end():
    hook = CheckNumbersHook(limit=4)
    run = Run(build(nn.Sequential(nn.ReLU(), Root())), hook, wrapper=ScaledWrapper)
    with pytest.raises(UserError, match=r'first in middle.1 \(Root\).* this is step 4 in a row'):
        run([make_batch(i) for i in range(9)])


@pytest.mark.parametrize('accumulate', [1, 3])
def test_overflow_that_damages_running_statistics(accumulate):
    """It is seen with its own batch, not only at the end of the step."""
    batches = [make_batch(0), make_batch(1, bad=1), make_batch(2)]
    with pytest.raises(UserError, match='iteration 2: .*images: 1/1.png'):
        Run(build(), CheckNumbersHook(), accumulate, ScaledWrapper)(batches)
    run = Run(build(), CheckNumbersHook('skip'), accumulate, ScaledWrapper)(batches)
    assert all(value.isfinite().all() for value in state_of(run).values())
    assert run.warnings[0].startswith('iteration 2: ') and 'images: 1/1.png' in run.warnings[0]


def test_skipping_a_forward_that_fails_within_a_step_of_the_scaler():
    run = Run(build(Matching()), CheckNumbersHook('skip'), 3, ScaledWrapper)
    before = state_of(run)
    run([make_batch(0), make_batch(1, bad=1), make_batch(2)])
    got = state_of(run)
    assert all(torch.equal(got[name], before[name]) for name, _ in run.model.named_parameters())


class BFloat16Wrapper(ScaledWrapper):
    """As ``AmpOptimWrapper`` with ``dtype='bfloat16'``."""

    cast_dtype = torch.bfloat16


def test_scaled_loss_that_cannot_overflow():
    """One that is not finite is what it is without a scale."""
    batches = [make_batch(0), make_batch(1, bad=1), make_batch(2)]
    with pytest.raises(UserError, match='iteration 2: .*images: 1/1.png'):
        Run(build(nn.Identity()), CheckNumbersHook(), wrapper=BFloat16Wrapper)(batches)
    run = Run(build(nn.Sequential(nn.ReLU(), Root())), CheckNumbersHook(), wrapper=BFloat16Wrapper)
    with pytest.raises(UserError, match=r'iteration 1: .*first in middle.1 \(Root\)'):  # a gradient, not the loss
        run(batches)
    run = Run(build(nn.Identity()), CheckNumbersHook('skip'), wrapper=BFloat16Wrapper)(batches)
    assert run.message_hub.get_scalar('train/skipped_steps').current() == 1
    assert run.warnings[0].startswith('iteration 2: ')


def test_scale_that_grows_without_end():
    """mmengine's scaler doubles it every 2000 steps; squares of gradients overflow long before they do."""

    def grown(*args, **kwargs):
        return BFloat16Wrapper(*args, scale=2.0**80, **kwargs)

    batches = [make_batch(i) for i in range(4)]
    plain = Run(build(), wrapper=grown)(batches)
    hooked = Run(build(), CheckNumbersHook(), wrapper=grown)(batches)
    assert_equal(state_of(plain), state_of(hooked))
    with pytest.raises(UserError, match='iteration 6: loss_fit is nan'):
        hooked([make_batch(0), make_batch(1, bad=1)])


def test_scaler_that_is_disabled():
    """It skips nothing."""

    def disabled(*args, **kwargs):
        wrapper = ScaledWrapper(*args, **kwargs)
        wrapper.loss_scaler = torch.amp.GradScaler('cpu', enabled=False)
        return wrapper

    with pytest.raises(UserError, match=r'iteration 1: .*first in middle.1 \(Root\)'):
        Run(build(nn.Sequential(nn.ReLU(), Root())), CheckNumbersHook(), wrapper=disabled)([make_batch(0)])


def test_steps_are_counted_not_their_batches():
    hook = CheckNumbersHook('skip', limit=2)
    bad = [make_batch(i, bad=0) for i in range(4)]
    run = Run(build(), hook, accumulate=4)(bad)
    assert run.message_hub.get_scalar('train/skipped_steps').current() == 1
    assert len(run.warnings) == 5  # each batch, and the count at the end
    with pytest.raises(UserError, match='this is step 2 in a row'):
        run(bad)


def test_a_step_of_the_model_s_own_comes_back():
    """Such as a compiled one."""
    run = Run(build(), CheckNumbersHook())
    own = run.model.train_step = partial(type(run.model).train_step, run.model)
    run([make_batch(0)])
    assert run.model.train_step is own


def train_in_two(rank, port, folder):
    """Only the second process has a bad image; both have to say so."""
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE='2')
    torch.distributed.init_process_group('gloo')
    said = []
    for action in ('skip', 'stop'):
        model = build(nn.Identity())
        run = Run(model, CheckNumbersHook(action))
        run.model = MMDistributedDataParallel(model)
        batches = [make_batch(10 * rank), make_batch(10 * rank + 1, bad=2 if rank else None), make_batch(10 * rank + 2)]
        try:
            run(batches)
            said.append(run.warnings[0])
            weights = torch.cat([p.detach().flatten() for p in model.parameters()])
            said.append(weights.double().sum().item())
        except UserError as error:
            said.append(str(error))
    torch.save(said, f'{folder}/{rank}.pth')
    torch.distributed.destroy_process_group()


def test_two_processes_agree(tmp_path, free_port):
    mp.spawn(train_in_two, (free_port, str(tmp_path)), nprocs=2)
    one, two = (torch.load(tmp_path / f'{rank}.pth') for rank in range(2))
    assert one == two
    assert one[0].startswith('iteration 2: ') and 'images: 11/2.png' in one[0]
    assert one[2].startswith('iteration 2: ') and 'images: 11/2.png' in one[2]


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_names_of_each_toolbox(scope):
    sizes = [(64, 64), (64, 64)]
    assert image_names(synthetic.make_batch(scope, 3, sizes)) == ['0.jpg', '1.jpg']


def test_the_batch_before_mixup():
    """mmpretrain's preprocessor writes mixed scores into the data samples, and would mix these again."""
    from mmpretrain.models import ClsDataPreprocessor
    from mmpretrain.structures import DataSample

    samples = [DataSample().set_gt_label(label) for label in (0, 1)]
    batch = dict(inputs=torch.rand(2, 3, 8, 8), data_samples=samples)
    augments = dict(augments=dict(type='Mixup', alpha=0.8), probs=1.0)
    preprocessor = ClsDataPreprocessor(num_classes=2, batch_augments=augments)
    hook = CheckNumbersHook()
    hook.before_train_iter(None, 0, batch)
    preprocessor(batch, training=True)
    assert 'gt_score' in samples[0]
    assert all('gt_score' not in sample for sample in hook._batch['data_samples'])
    assert [int(sample.gt_label) for sample in hook._batch['data_samples']] == [0, 1]
    assert hook._batch['inputs'] is batch['inputs']


def test_names_that_are_nested_or_missing():
    batch = dict(sup=dict(data_samples=[sample('a')]), other=([sample('b')], torch.ones(1)))
    assert image_names(batch) == ['a', 'b']
    assert image_names([BaseDataElement(metainfo=dict(sample_idx=3)), BaseDataElement()]) == ['3', '?']
    assert image_names(torch.ones(2)) == []


@pytest.mark.parametrize('kwargs', [dict(action='ignore'), dict(limit=0), dict(limit=2.5)])
def test_wrong_arguments(kwargs):
    with pytest.raises(ConfigError, match=f'CheckNumbersHook: {next(iter(kwargs))} must be'):
        CheckNumbersHook(**kwargs)
