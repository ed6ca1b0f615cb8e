"""The backbone against literal matrices, timm's PVTv2, and its own promises."""

import itertools
import math
from collections import Counter
from copy import deepcopy
from functools import partial
from unittest import mock

import literal
import pytest
import torch
import torch.nn.functional as F
from mmengine.model import PretrainedInit
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmlavit import LaViT
from mmlavit.models import (
    AttentionResidual,
    LessAttention,
    Scores,
    VanillaAttention,
    diagonality_loss,
    lavit,
    layers,
    resample_matrix,
    resample_tokens,
    square_scores,
)
from mmlavit.models.lavit import attend, transform_keys
from mmlavit.models.layers import FeedForward, LayerNorm
from mmlavit.models.layout import PointwiseLinear, folding_pays
from mmlavit.utils.toolbox import load_toolbox

TOY = dict(
    embed_dims=(8, 16, 24, 24), num_heads=(1, 2, 2, 3), depths=(2, 2, 4, 2), num_va_layers=(1, 1, 2, 1),
    mlp_ratios=(2, 3, 2, 2),
)  # fmt: skip
SIZES = [(1, 1), (31, 33), (224, 224), (97, 161)]


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter a value that a wrong formula would show."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        fan_in = max(parameter[0].numel(), 1) if parameter.dim() > 1 else 1
        offset = 1.0 if 'norm' in name and name.endswith('weight') else 0.0
        scale = 1.5 if name.endswith(('q.weight', 'kv.weight')) else 1.0  # scores of order one
        parameter.data = offset + noise * (scale / math.sqrt(fan_in) if parameter.dim() > 1 else 0.2)
    return model


def toy(**kwargs) -> LaViT:
    return randomise(LaViT(TOY, drop_path_rate=0.0, **kwargs).double())


class TestResampling:
    @pytest.mark.parametrize(('src', 'dst'), [(7, 7), (14, 7), (25, 7), (10, 7), (3, 7), (1, 7), (7, 50), (7, 3)])
    def test_matrix_is_the_literal_one(self, src, dst):
        matrix = resample_matrix(src, dst, dtype=torch.float64)
        torch.testing.assert_close(matrix, literal.axis_matrix(src, dst), rtol=0, atol=1e-12)
        torch.testing.assert_close(matrix.sum(1), torch.ones(dst, dtype=torch.float64))

    def test_equal_sizes_give_exactly_the_identity(self):
        for size in range(1, 400):
            assert torch.equal(resample_matrix(size, size), torch.eye(size))

    @pytest.mark.parametrize('dst', [(7, 7), (2, 9), (9, 2), (12, 20), (5, 3)])
    def test_tokens(self, dst):
        x = torch.randn(2, 15, 4, dtype=torch.float64)
        expected = literal.grid_matrix((5, 3), dst) @ x
        torch.testing.assert_close(resample_tokens(x, (5, 3), dst), expected, rtol=0, atol=1e-12)

    def test_a_matrix_cached_in_inference_mode_serves_training(self):
        with torch.inference_mode():
            resample_tokens(torch.rand(1, 169, 1), (13, 13), (11, 11))
        x = torch.rand(1, 169, 1, requires_grad=True)
        resample_tokens(x, (13, 13), (11, 11)).sum().backward()
        assert x.grad is not None


class TestAgainstLiteralMatrices:
    @pytest.mark.parametrize('key_reduction', ['conv', 'pool'])
    @pytest.mark.parametrize(
        'size',
        [(224, 224), (256, 288), (64, 96), (96, 256)],
        ids=['reference', 'larger', 'smaller', 'mixed'],
    )
    def test_backbone(self, size, key_reduction):
        model = toy(key_reduction=key_reduction).eval()
        x = torch.randn(1, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            for out, expected in zip(model(x), literal.backbone(model, x)):
                torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)

    @pytest.mark.parametrize('stage', [2, 3])
    def test_less_attention_is_the_papers_own_form_at_224(self, stage):
        """Psi as a free N x N matrix and two linears around transposes, as the paper writes it."""
        side = (14, 7)[stage - 2]
        n, heads, dim = side * side, 2, 16
        attn = randomise(LessAttention(dim, heads, (2, 1)[stage - 2], (7, 7), (side, side)).double())
        psi = nn.Linear(n, n, bias=False, dtype=torch.float64)
        theta = nn.Linear(49, 49, bias=False, dtype=torch.float64)
        psi.weight.data = torch.eye(n, dtype=torch.float64) + attn.delta_psi.data
        theta.weight.data = torch.eye(49, dtype=torch.float64) + attn.delta_theta.data
        x = torch.randn(2, n, dim, dtype=torch.float64)
        scores = torch.randn(2, heads, n, 49, dtype=torch.float64)
        expected = psi(theta(scores).transpose(2, 3)).transpose(2, 3)  # rows, then columns
        out, new_scores = attn(x, Scores(scores.transpose(1, 2).flatten(2), heads, (side, side)))
        new_scores = new_scores.map.unflatten(2, (heads, 49)).transpose(1, 2)
        torch.testing.assert_close(new_scores, expected, rtol=0, atol=1e-10)
        values = attn.v(attn.reduction(x, (side, side))).unflatten(2, (heads, -1)).transpose(1, 2)
        expected_out = attn.proj((expected.softmax(-1) @ values).transpose(1, 2).flatten(2))
        torch.testing.assert_close(out, expected_out, rtol=0, atol=1e-10)

    @pytest.mark.parametrize('grad', [True, False], ids=['extra columns', 'pieces'])
    @pytest.mark.parametrize('key_grid', [(9, 11), (3, 4), (15, 13)])
    def test_residual_equals_a_mask_of_all_keys(self, key_grid, grad, monkeypatch):
        monkeypatch.setattr(lavit, 'attend_with_bias', partial(lavit.attend_with_bias, piece_bytes=1))  # 64 queries
        heads, dim = 2, 16
        attn = randomise(VanillaAttention(dim, heads, 1, (7, 7)).double())
        n = key_grid[0] * key_grid[1]
        x = torch.randn(2, n, dim, dtype=torch.float64)
        residual = torch.randn(2, n, heads * 49, dtype=torch.float64)
        with torch.set_grad_enabled(grad):
            out, _ = attn(x, key_grid, Scores(residual, heads, key_grid))
        mask = residual.unflatten(2, (heads, 49)).transpose(1, 2) @ literal.grid_matrix((7, 7), key_grid).T
        q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (attn.q(x), *attn.kv(x).chunk(2, dim=-1)))
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        expected = attn.proj(expected.transpose(1, 2).flatten(2))
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)


class TestAttentionResidual:
    @staticmethod
    def scores(images=3, heads=2, grid=(6, 8), keys=5, dtype=torch.float64):
        """Random scores; images and heads differ in mean and deviation."""
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(images, grid[0] * grid[1], heads, keys, generator=generator, dtype=dtype)
        mean, deviation = (torch.randn(images, 1, heads, 1, generator=generator, dtype=dtype) for _ in range(2))
        return Scores((x * deviation + mean).flatten(2), heads, grid)

    def test_loops_over_images_and_heads(self):
        residual, scores = randomise(AttentionResidual(2, 3, 0.1).double()), self.scores()
        found = residual(scores)
        assert found.heads == 3 and found.grid == (3, 4)
        expected = literal.attention_residual(
            residual, [list(image.unflatten(1, (2, 5)).unbind(1)) for image in scores.map], scores.grid
        )
        expected = torch.stack([torch.cat(heads, dim=1) for heads in expected])
        torch.testing.assert_close(found.map, expected, rtol=0, atol=1e-12)

    def test_it_has_no_state(self):
        residual, scores = randomise(AttentionResidual(2, 3, 0.1)), self.scores(dtype=torch.float32)
        assert not dict(residual.named_buffers())
        before = {name: value.clone() for name, value in residual.state_dict().items()}
        trained, again, tested = residual.train()(scores), residual(scores), residual.eval()(scores)
        assert torch.equal(trained.map, again.map) and torch.equal(trained.map, tested.map)
        torch.testing.assert_close(residual.state_dict(), before, rtol=0, atol=0)

    @pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
    def test_other_images_of_the_batch_change_nothing(self, training):
        model = toy().train(training)
        image = torch.randn(1, 3, 96, 160, dtype=torch.float64)
        others = 3 * torch.randn(2, 3, 96, 160, dtype=torch.float64) + 1
        for out, alone in zip(model(torch.cat([image, others])), model(image), strict=True):
            torch.testing.assert_close(out[:1], alone, rtol=0, atol=1e-12)

    def test_training_and_testing_are_the_same(self):
        model, x = toy(), torch.randn(2, 3, 96, 160, dtype=torch.float64)
        for trained, tested in zip(model.train()(x), model.eval()(x), strict=True):
            torch.testing.assert_close(trained, tested, rtol=0, atol=0)

    @pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize('value', [0.0, 300.0])
    @pytest.mark.parametrize(('grid', 'keys'), [((2, 2), 1), ((6, 8), 49)], ids=['one', 'many'])
    def test_equal_scores_are_invisible(self, grid, keys, value, dtype, device):
        """Their deviation is zero."""
        residual = AttentionResidual(2, 3, 0.1).to(device)
        x = torch.full((2, grid[0] * grid[1], 2 * keys), value, dtype=dtype, device=device, requires_grad=True)
        with torch.autocast(x.device.type, dtype, enabled=dtype is not torch.float32):
            out = residual(Scores(x, 2, grid)).map
        assert out.abs().max() < 1e-2
        out.float().sum().backward()
        assert all(t.grad.isfinite().all() for t in (x, *residual.parameters()))

    @pytest.mark.parametrize('shift', [0, 300], ids=['centred', 'shifted'])
    @pytest.mark.parametrize(
        ('dtype', 'limit'), [(torch.float32, 1e-5), (torch.bfloat16, 0.03), (torch.float16, 0.005)], ids=str
    )
    def test_large_scores_in_half_precision(self, dtype, limit, shift, device):
        """Their squares do not fit into float16, whose largest number is 65,504."""
        residual, scores = randomise(AttentionResidual(2, 3, 0.1)).to(device), self.scores(dtype=torch.float32)
        x = (300 * scores.map / scores.map.std() + shift).to(device, dtype).requires_grad_()
        with torch.autocast(x.device.type, dtype, enabled=dtype is not torch.float32):
            out = residual(scores._replace(map=x)).map
        expected = deepcopy(residual).double()(scores._replace(map=x.detach().double())).map
        assert (out - expected).norm() < limit * expected.norm()
        out.float().square().sum().backward()
        assert all(t.grad.isfinite().all() for t in (x, *residual.parameters()))

    def test_a_shift_costs_no_digits(self):
        """In single precision, over a map as large as a detector's."""
        residual = AttentionResidual(2, 5, 0.1)
        x = torch.randn(1, 96 * 128, 2 * 49, generator=torch.Generator().manual_seed(0)) + 300
        expected = deepcopy(residual).double()(Scores(x.double(), 2, (96, 128))).map
        assert (residual(Scores(x, 2, (96, 128))).map - expected).norm() < 1e-3 * expected.norm()


class TestInferenceOnTheCPU:
    @pytest.mark.parametrize('strip_bytes', [1, 60_000, 300_000], ids=['rows', 'several rows', 'several images'])
    def test_feed_forward_in_strips_is_the_same(self, strip_bytes, monkeypatch):
        monkeypatch.setattr(layers, 'map_strips', partial(layers.map_strips, strip_bytes=strip_bytes))
        mlp, grid = FeedForward(8, 24).double(), (37, 20)
        x = torch.randn(5, 37 * 20, 8, dtype=torch.float64)
        whole = mlp(x, grid)
        sizes, forward = [], mlp._forward
        mlp._forward = lambda x, grid: sizes.append(x.shape[0] * x.shape[1]) or forward(x, grid)
        with torch.no_grad():
            strips = mlp(x, grid)
        torch.testing.assert_close(strips, whole, rtol=0, atol=1e-13)
        assert len(sizes) > 1 and max(sizes) < 5 * 37 * 20  # never all at once

    @pytest.mark.parametrize('size', [(224, 224), (320, 448)], ids=str)
    def test_inference_equals_the_graph_of_training(self, size):
        model = randomise(LaViT('nano', drop_path_rate=0.0)).eval()
        x = torch.randn(3, 3, *size)
        with torch.inference_mode():
            outs = model(x)
        for out, expected in zip(outs, model(x), strict=True):
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


class TestSizes:
    @pytest.mark.parametrize(
        ('arch', 'millions', 'published'),
        [('tiny', 10.87, 10.9), ('small', 22.39, 22.4), ('base', 40.29, 39.6)],
        ids=['tiny', 'small', 'base'],
    )
    def test_parameters_with_a_1000_way_head(self, arch, millions, published):
        """Within two percent of the paper's."""
        count = sum(p.numel() for p in LaViT(arch).parameters()) + 512 * 1000 + 1000
        assert count / 1e6 == pytest.approx(millions, abs=0.006)
        assert count / 1e6 == pytest.approx(published, rel=0.02)

    @pytest.mark.parametrize('size', SIZES, ids=str)
    @pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
    def test_any_size(self, size, training):
        model = LaViT('nano').train(training)
        outs = model(torch.randn(2, 3, *size))
        for out, channels, stride in zip(outs, (32, 64, 128, 192), (4, 8, 16, 32)):
            assert out.shape == (
                2,
                channels,
                math.ceil(size[0] / stride),
                math.ceil(size[1] / stride),
            )
            assert out.isfinite().all()
            assert out.is_contiguous()  # mmcv's RoIAlign on the CPU misreads any other layout

    @pytest.mark.parametrize('size', [(1, 1), (31, 33), (97, 161)], ids=str)
    def test_equals_the_crop_of_the_padded_input(self, size):
        model = toy().eval()
        x = torch.randn(1, 3, *size, dtype=torch.float64)
        padded = torch.zeros(1, 3, -(-size[0] // 32) * 32, -(-size[1] // 32) * 32, dtype=torch.float64)
        padded[..., : size[0], : size[1]] = x
        with torch.no_grad():
            for out, full in zip(model(x), model(padded)):
                torch.testing.assert_close(out, full[..., : out.shape[2], : out.shape[3]], rtol=0, atol=1e-12)

    def test_one_weight_file_runs_at_224_and_384(self, tmp_path):
        source = randomise(LaViT(TOY))
        torch.save(source.state_dict(), tmp_path / 'weights.pth')
        model = LaViT(TOY).eval()
        model.load_state_dict(torch.load(tmp_path / 'weights.pth', weights_only=True), strict=True)
        with torch.no_grad():
            assert [o.shape[2] for o in model(torch.randn(1, 3, 224, 224))] == [56, 28, 14, 7]
            assert [o.shape[2] for o in model(torch.randn(1, 3, 384, 384))] == [96, 48, 24, 12]

    def test_pool_is_the_same_function_at_the_own_size_and_another_one_elsewhere(self):
        conv, pool = toy().eval(), toy(key_reduction='pool').eval()
        pool.load_state_dict(conv.state_dict(), strict=True)
        with torch.no_grad():
            for size, same in ((224, True), (320, False)):
                x = torch.randn(1, 3, size, size, dtype=torch.float64)
                difference = (conv(x)[-1] - pool(x)[-1]).abs().max().item()
                assert (difference < 1e-12) is same


class TestTraining:
    @pytest.mark.parametrize('key_reduction', ['conv', 'pool'])
    @pytest.mark.parametrize('size', [(96, 128), (256, 320)], ids=str)
    def test_every_parameter_gets_a_gradient(self, size, key_reduction):
        model = LaViT('nano', drop_path_rate=0.0, key_reduction=key_reduction).train()
        generator = torch.Generator().manual_seed(0)
        outs = model(torch.randn(2, 3, *size, generator=generator))
        sum((out * torch.randn(out.shape, generator=generator)).sum() for out in outs).backward()
        dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        assert not dead

    def test_with_cp_changes_nothing(self):
        torch.manual_seed(0)
        plain, checkpointed = (LaViT(TOY, drop_path_rate=0.3, with_cp=cp).double().train() for cp in (False, True))
        checkpointed.load_state_dict(plain.state_dict())
        x = torch.randn(2, 3, 96, 160, dtype=torch.float64)
        gradients, outputs, runs = [], [], []
        for model in (plain, checkpointed):
            count = []
            for stage in model.stages:
                for block in (*stage.blocks, *filter(None, [stage.residual])):
                    block.register_forward_pre_hook(lambda module, args, count=count: count.append(module))
            torch.manual_seed(1)
            outputs.append(model(x))
            sum(out.square().sum() for out in outputs[-1]).backward()
            gradients.append({name: p.grad for name, p in model.named_parameters()})
            runs.append(len(count))
        torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
        torch.testing.assert_close(gradients[0], gradients[1])
        assert runs[1] == 2 * runs[0]  # once more in the backward pass

    @pytest.mark.parametrize('key_reduction', ['conv', 'pool'])
    @pytest.mark.parametrize(('dtype', 'limit'), [(torch.bfloat16, 0.03), (torch.float16, 0.004)], ids=str)
    def test_autocast_stays_close(self, dtype, limit, key_reduction):
        model = LaViT('nano', drop_path_rate=0.0, key_reduction=key_reduction).eval()
        model.init_weights()
        x = torch.randn(2, 3, 160, 192)
        with torch.no_grad():
            expected = model(x)
            with torch.autocast('cpu', dtype=dtype):
                outs = model(x)
        for out, target in zip(outs, expected):
            error = (out.float() - target).norm() / target.norm()
            assert 0 < error < limit

    @pytest.mark.parametrize('key_reduction', ['conv', 'pool'])
    @pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
    def test_autocast_trains(self, dtype, key_reduction):
        """The gradient points where that of float32 does."""
        model = LaViT('nano', drop_path_rate=0.0, key_reduction=key_reduction).train()
        model.init_weights()
        x = torch.randn(2, 3, 160, 192)
        target = [torch.randn_like(out) for out in model(x)]
        gradients = []
        for enabled in (False, True):
            model.zero_grad()
            with torch.autocast('cpu', dtype=dtype, enabled=enabled):
                outs = model(x)
            sum((out.float() * t).mean() for out, t in zip(outs, target)).backward()
            assert all(p.grad.isfinite().all() for p in model.parameters())
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        assert torch.cosine_similarity(*gradients, dim=0) > 0.99

    @pytest.mark.parametrize('cast', ['autocast', 'whole'])
    @pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
    def test_gradients_of_norms_sum_over_many_tokens(self, dtype, cast):
        """Of nn.LayerNorm on a CPU, most is lost in bfloat16."""
        torch.manual_seed(0)
        norm, x, target = LayerNorm(32), torch.randn(2, 10_000, 32), torch.randn(2, 10_000, 32).abs()
        x = x.to(dtype)
        (norm(x.float()) * target).sum().backward()
        wanted = [p.grad.clone() for p in norm.parameters()]
        norm.zero_grad()
        if cast == 'whole':
            norm.to(dtype)
        with torch.autocast('cpu', dtype, enabled=cast == 'autocast'):
            out = norm(x)
        assert out.dtype is dtype
        (out.float() * target).sum().backward()
        for parameter, gradient in zip(norm.parameters(), wanted, strict=True):
            atol = 0.002 * float(gradient.abs().max())
            torch.testing.assert_close(parameter.grad.float(), gradient, rtol=0.02, atol=atol)

    def test_drop_path_grows_linearly_and_drops_whole_images(self):
        model = LaViT('small', drop_path_rate=0.3)
        rates = [block.drop_path.rate for stage in model.stages for block in stage.blocks]
        assert rates == pytest.approx([0.3 * i / 15 for i in range(16)])
        drop = model.stages[3].blocks[-1].drop_path.train()
        torch.manual_seed(0)
        kept = drop(torch.ones(4000, 2, 1))
        assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
        assert torch.equal(kept[:, 0], kept[:, 1])
        assert kept.mean().item() == pytest.approx(1, abs=0.05)


class TestPaddedBatches:
    """Zeros must not multiply gradients: with biases of zero their tokens are zero, and LayerNorms blow it up."""

    @staticmethod
    def first_gradient(image, diagonality=False, arch='nano'):
        """Norm of the gradient of a random linear function of the maps, or of the diagonality loss."""
        torch.manual_seed(0)
        model = LaViT(arch, drop_path_rate=0.0).train()
        model.init_weights()
        terms = []

        def observe(attn, scores):
            if isinstance(attn, LessAttention):
                key_grid = attn.reduction.reduced_grid(scores.grid)
                terms.append(diagonality_loss(square_scores(scores, key_grid, attn.reference_grid)))

        model.score_observer = observe
        generator = torch.Generator().manual_seed(1)
        loss = sum((out * torch.randn(out.shape, generator=generator)).mean() for out in model(image))
        (torch.stack(terms).mean() if diagonality else loss).backward()
        return torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item()

    @staticmethod
    def natural(height=256, width=320):
        """Two normalised images with the spectrum of natural ones."""
        generator = torch.Generator().manual_seed(2)
        octaves = [torch.randn(2, 3, height >> i, width >> i, generator=generator) for i in range(7)]
        image = sum(F.interpolate(o, (height, width), mode='bilinear') * 1.5**i for i, o in enumerate(octaves))
        return image / image.std()

    @pytest.mark.parametrize(
        ('content', 'diagonality', 'limit'),
        [
            *itertools.product(['16 rows', '64 rows', 'half'], [False, True], [2]),
            ('uniform', False, 2),
            ('zero', False, 2),
            ('uniform', True, 2),
            ('zero', True, 3),  # the attention residual's norm divides by a small deviation
        ],
    )
    def test_first_gradient_is_that_of_full_images(self, content, diagonality, limit):
        full = self.natural()
        image = full.clone()
        if content.endswith('rows'):
            image[:, :, -int(content.split()[0]) :] = 0
        elif content == 'half':
            image[..., 160:] = 0
        else:
            image[:] = {'uniform': 0.7, 'zero': 0.0}[content]
        assert self.first_gradient(image, diagonality) < limit * self.first_gradient(full, diagonality)

    def test_one_pixel(self):
        """Padded inside to 32x32: one patch holds the pixel, all others are zero."""
        full = self.natural()[..., :32, :32]
        pixel = full[..., :1, :1]

        def gradient(image):
            torch.manual_seed(0)
            model = LaViT('nano', drop_path_rate=0.0).train()
            model.init_weights()
            generator = torch.Generator().manual_seed(1)
            corners = [out[..., :1, :1] for out in model(image)]
            sum((c * torch.randn(c.shape, generator=generator)).mean() for c in corners).backward()
            return torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()

        assert gradient(pixel) < 2 * gradient(full)


class TestModules:
    """Linears are modules that are called, whoever replaces or watches them."""

    @pytest.mark.parametrize('size', [(128, 128), (256, 320)], ids=str)
    @pytest.mark.parametrize('training', [False, True], ids=['inference', 'training'])
    def test_every_linear_can_be_hooked(self, size, training):
        model = randomise(LaViT('nano', drop_path_rate=0.0)).train(training).double()
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        with torch.set_grad_enabled(training):
            expected = model(x)
            called = Counter()
            linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
            for name, linear in linears.items():
                linear.register_forward_hook(lambda *args, name=name: called.update([name]))
            outs = model(x)
        assert called == dict.fromkeys(linears, 1)
        for out, target in zip(outs, expected, strict=True):
            torch.testing.assert_close(out, target, rtol=0, atol=1e-11)

    @pytest.mark.parametrize('size', [(128, 128), (256, 320)], ids=str)
    def test_a_wrapped_linear_is_called(self, size):
        """As LoRA wraps one: the base keeps its weight, the wrapper adds to its output."""

        class Wrapper(nn.Module):
            def __init__(self, base):
                super().__init__()
                self.base = base
                self.weight, self.bias = base.weight, base.bias  # as peft's layers show them

            def forward(self, x):
                return 2 * self.base(x)

        model = randomise(LaViT('nano', drop_path_rate=0.0)).double().eval()
        x = torch.randn(1, 3, *size, dtype=torch.float64)
        doubled = deepcopy(model)
        for block in (b for stage in model.stages for b in stage.blocks):
            for name in ('q', 'proj'):
                if hasattr(block.attn, name):
                    setattr(block.attn, name, Wrapper(getattr(block.attn, name)))
        for name, parameter in doubled.named_parameters():
            if '.q.' in name or '.attn.proj.' in name:
                parameter.data *= 2
        with torch.no_grad():
            for out, target in zip(model(x), doubled(x), strict=True):
                torch.testing.assert_close(out, target, rtol=0, atol=1e-11)

    @pytest.mark.parametrize('run', ['inference', 'training', 'exported'])
    def test_a_wrapped_feed_forward_is_called(self, run):
        """By a wrapper without the attributes of a linear, which is replaced in all places of the code."""

        class Wrapper(nn.Module):
            def __init__(self, base):
                super().__init__()
                self.base = base

            def forward(self, x):
                return 2 * self.base(x)

        model = randomise(LaViT('nano', drop_path_rate=0.0)).double().eval()
        x = torch.randn(1, 3, 128, 128, dtype=torch.float64)
        doubled = deepcopy(model)
        for mlp in (block.mlp for stage in model.stages for block in stage.blocks):
            mlp.fc1, mlp.fc2 = Wrapper(mlp.fc1), Wrapper(mlp.fc2)
        for name, parameter in doubled.named_parameters():
            if '.mlp.fc' in name:
                parameter.data *= 2
        with torch.set_grad_enabled(run == 'training'):
            found = torch.export.export(model, (x,)).module()(x) if run == 'exported' else model(x)
            for out, target in zip(found, doubled(x), strict=True):
                torch.testing.assert_close(out, target, rtol=1e-9, atol=1e-9)

    def test_backward_hooks_are_called(self):
        model = randomise(LaViT('nano', drop_path_rate=0.0))
        called = Counter()
        linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        for name, linear in linears.items():
            linear.register_full_backward_hook(lambda *args, name=name: called.update([name]))
        sum(out.sum() for out in model(torch.randn(2, 3, 128, 128))).backward()
        assert called == dict.fromkeys(linears, 1)

    @pytest.mark.parametrize(('dim', 'heads'), [(64, 1), (128, 2), (320, 5), (512, 8), (192, 6)], ids=str)
    def test_folding_takes_the_cheaper_form(self, dim, heads):
        """Multiply-adds of both forms, counted by torch."""
        keys = 49

        def count(tokens, fold):
            attn = VanillaAttention(dim, heads, 1, (7, 7), pool=True)
            if not fold:
                for layer in (attn.q, attn.proj):
                    layer.register_forward_hook(lambda *args: None)
            x, key = torch.empty(1, tokens, dim), torch.empty(1, keys, dim)
            with FlopCounterMode(display=False) as counter:
                scores = attn._reference_scores(x, None, key, (1, tokens), None)
                attend(scores, key, attn.proj)
            return counter.get_total_flops()

        for tokens in (16, 49, 64, 147, 149, 400):
            with mock.patch('mmlavit.models.lavit.folding_pays', lambda layer, *args: not layer._forward_hooks):
                cheaper = count(tokens, True) < count(tokens, False)
            assert folding_pays(PointwiseLinear(dim, dim), tokens, keys, heads) is cheaper

    @pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize('size', [(128, 128), (97, 161)], ids=str)
    def test_whole_model_in_half_precision(self, size, dtype, device):
        model = LaViT('nano', drop_path_rate=0.0).to(device)
        model.init_weights()
        x = torch.randn(2, 3, *size, device=device)
        expected = model.eval()(x)
        half = deepcopy(model).to(dtype)
        for out, target in zip(half(x.to(dtype)), expected, strict=True):
            assert out.dtype == dtype
            assert (out - target).norm() / target.norm() < 0.05
        sum(out.float().square().mean() for out in half.train()(x.to(dtype))).backward()
        assert all(p.grad.isfinite().all() and p.grad.dtype == dtype for p in half.parameters())

    @pytest.mark.parametrize('key_reduction', ['conv', 'pool'])
    @pytest.mark.parametrize('size', [(128, 128), (256, 320)], ids=str)
    def test_device_gives_the_same(self, size, key_reduction, device):
        """Fused kernels and whole feed-forwards against double precision on the CPU, gradients included."""
        model = randomise(LaViT('nano', drop_path_rate=0.0, key_reduction=key_reduction)).eval()
        x = torch.randn(2, 3, *size)
        results = []
        for m, image in ((deepcopy(model).double(), x.double()), (model.to(device), x.to(device))):
            outs = m(image)
            sum(out.square().mean() for out in outs).backward()
            results.append([t.double().cpu() for t in (*outs, *(p.grad for p in m.parameters()))])
        for got, expected in zip(*reversed(results), strict=True):
            assert (got - expected).norm() <= 1e-3 * expected.norm() + 1e-6

    def test_observer_sees_vanilla_layers_that_keep_their_scores(self):
        model = randomise(LaViT('small', drop_path_rate=0.0)).eval()
        x, seen = torch.randn(1, 3, 64, 96), []
        with torch.no_grad():
            expected = model(x)
            model.score_observer = lambda attn, scores: seen.append((attn, scores))
            model(x)
            layers = [block.attn for stage in model.stages for block in stage.blocks]
            vanilla = [attn for attn in layers if isinstance(attn, VanillaAttention)]
            assert [attn for attn, _ in seen] == [a for a in layers if a not in vanilla or a.keep_scores]
            for attn in vanilla:
                attn.keep_scores = True
            seen.clear()
            outs = model(x)
        assert [attn for attn, _ in seen] == layers
        assert [scores.map.shape[2] for _, scores in seen] == [49 * attn.heads for attn in layers]
        for out, target in zip(outs, expected, strict=True):
            assert torch.equal(out, target)


class TestInterface:
    def test_no_tokens_beside_the_grid(self):
        """mmpretrain's Grad-CAM asks for their number."""
        assert LaViT('nano').num_extra_tokens == 0

    def test_initialisation(self):
        model = LaViT('nano')
        before = {n: p.clone() for n, p in model.named_parameters() if 'delta' in n or 'residual' in n}
        assert before
        model.init_weights()
        after = dict(model.named_parameters())
        for name, value in before.items():
            assert torch.equal(after[name], value), name
        mlp = model.stages[3].blocks[0].mlp
        assert mlp.fc2.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert mlp.fc1.weight.std().item() == pytest.approx(192**-0.5, rel=0.1)
        assert not mlp.fc1.bias.any()
        embed = model.stages[0].patch_embed.proj  # biases of zero would make zero tokens of padded regions
        assert embed.bias.abs().max() <= 48**-0.5
        assert embed.bias.std().item() == pytest.approx((3 * 48) ** -0.5, rel=0.3)
        assert embed.weight.std().item() == pytest.approx((2 / 48) ** 0.5, rel=0.1)
        dwconv = model.stages[3].blocks[0].mlp.dwconv.weight
        assert dwconv.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.1)
        assert torch.equal(after['stages.1.residual.dwconv'], torch.full((1, 1, 2, 2), 0.25))

    def test_pretrained_without_checkpoint_says_so_once(self, capsys):
        from mmengine.logging import MMLogger

        MMLogger.get_instance('scratch', logger_name='scratch')
        model = LaViT('nano', init_cfg=dict(type='Pretrained', checkpoint=None, prefix='backbone.'))
        model.init_weights()
        text = ''.join(capsys.readouterr())
        assert text.count('LaViT starts from scratch') == 1
        assert model.stages[0].blocks[0].mlp.fc2.weight.std().item() == pytest.approx(0.02, rel=0.1)

    @pytest.mark.parametrize('kind', ['Pretrained', PretrainedInit])
    def test_pretrained_checkpoint_is_loaded(self, tmp_path, kind):
        source = randomise(LaViT(TOY))
        state = {f'backbone.{k}': v for k, v in source.state_dict().items()}
        torch.save(dict(state_dict=state), tmp_path / 'weights.pth')
        cfg = dict(type=kind, checkpoint=str(tmp_path / 'weights.pth'), prefix='backbone.')
        model = LaViT(TOY, init_cfg=cfg)
        model.init_weights()
        torch.testing.assert_close(model.state_dict(), source.state_dict(), rtol=0, atol=0)

    def test_list_of_one_checkpoint(self, tmp_path):
        """What the checkpoint lacks starts as it does without the list."""
        state = {k: v for k, v in randomise(LaViT('nano')).state_dict().items() if not k.endswith('fc1.weight')}
        torch.save(dict(state_dict=state), tmp_path / 'weights.pth')
        pretrained = dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'))
        for init_cfg in (pretrained, [pretrained], [pretrained, dict(type='Pretrained', checkpoint=None)]):
            torch.manual_seed(0)
            model = LaViT('nano', init_cfg=init_cfg)
            model.init_weights()
            assert model.stages[3].blocks[0].mlp.fc1.weight.std().item() == pytest.approx(192**-0.5, rel=0.1)
            name = 'stages.3.blocks.0.attn.q.weight'
            assert torch.equal(model.state_dict()[name], state[name])

    def test_stages_after_the_last_output_are_not_built(self):
        model = LaViT('nano', out_indices=(0, 2)).train()
        assert len(model.stages) == 3
        outs = model(torch.randn(2, 3, 128, 160))
        assert [out.shape[1] for out in outs] == [32, 128]
        sum(out.square().mean() for out in outs).backward()
        assert all(p.grad is not None for p in model.parameters())

    @pytest.mark.parametrize('frozen', [-1, 0, 1, 2, 4])
    def test_frozen_stages(self, frozen):
        model = LaViT('nano', frozen_stages=frozen).train()
        for i, stage in enumerate(model.stages):
            whole = i < frozen
            for name, parameter in stage.named_parameters():
                in_embed = i == 0 and frozen >= 0 and name.startswith('patch_embed')
                assert parameter.requires_grad is not (whole or in_embed), name
            assert stage.norm.training is not whole

    def test_vanilla_twin_has_no_less_attention_and_keeps_nothing(self):
        model = LaViT('small', num_va_layers=(3, 4, 6, 3), attention_residual=False)
        assert not any(isinstance(m, LessAttention) for m in model.modules())
        assert not any(m.keep_scores for m in model.modules() if isinstance(m, VanillaAttention))
        assert all(stage.residual is None for stage in model.stages)

    @pytest.mark.parametrize(
        ('kwargs', 'message'),
        [
            (dict(arch='huge'), "arch must be one of nano, tiny, small, base, .* got 'huge'"),
            (dict(arch=dict(TOY, dims=1)), r"unknown keys \['dims'\]"),
            (dict(arch={k: v for k, v in TOY.items() if k != 'depths'}), r"lacks \['depths'\]"),
            (dict(arch=dict(TOY, num_heads=(3, 2, 2, 3))), '8 channels do not divide into 3 heads'),
            (dict(arch=dict(TOY, depths=(2, 2, 2))), 'must be 4 positive integers'),
            (dict(arch=dict(TOY, patch_kernels=(6, 2, 2, 2))), '6 is neither the stride 4'),
            (dict(num_va_layers=0), 'num_va_layers must be between 1 and the depth'),
            (dict(num_va_layers=(1, 1, 1)), 'num_va_layers must be'),
            (dict(num_va_layers=5), 'num_va_layers must be'),
            (dict(in_channels=0), 'in_channels must be a positive integer, got 0'),
            (dict(in_channels='3'), "in_channels must be a positive integer, got '3'"),
            (
                dict(init_cfg=dict(checkpoint='weights.pth')),
                "init_cfg needs a type, got .*type='Pretrained', checkpoint=",
            ),
            (dict(init_cfg=['a.pth']), 'init_cfg must be a dict, a list of dicts or None'),
            (dict(layer_scale_init=None), 'layer_scale_init must be a finite number, got None'),
            (dict(init_cfg='weights.pth'), "or None, got 'weights.pth'; to start from a checkpoint: dict"),
            (dict(key_reduction='mean'), "key_reduction must be 'conv' or 'pool', got 'mean'"),
            (dict(out_indices=(1, 0)), 'out_indices must be increasing'),
            (dict(out_indices=()), 'out_indices must be increasing'),
            (dict(out_indices=(0, 4)), 'out_indices must be increasing'),
            (dict(frozen_stages=5), 'frozen_stages must be in -1..4'),
            (dict(drop_path_rate=1.0), 'drop_path_rate must be in'),
        ],
    )
    def test_errors_name_the_argument(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            LaViT(**kwargs)


def test_keys_of_the_same_scores_for_every_image():
    """Their batch is one image that was expanded, which is laid out otherwise with several threads."""
    threads = torch.get_num_threads()
    scores = torch.randn(1, 48, 32, generator=torch.Generator().manual_seed(0)).expand(4, -1, -1)
    delta = torch.randn(16, 16, generator=torch.Generator().manual_seed(1))
    wanted = (scores.unflatten(2, (2, 16)) @ (torch.eye(16) + delta).T).flatten(2)
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            torch.testing.assert_close(transform_keys(scores, delta), wanted, rtol=1e-5, atol=1e-5)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize('key_reduction', ['conv', 'pool'])
def test_threads(key_reduction):
    """With several, matrices are multiplied as convolutions, which the other tests, of one thread, do not see."""
    threads = torch.get_num_threads()
    model = toy(key_reduction=key_reduction).train()
    x = torch.randn(2, 3, 96, 160, dtype=torch.float64)
    results = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            model.zero_grad()
            outs = model(x)
            sum(out.square().sum() for out in outs).backward()
            results.append([*outs, *(parameter.grad.clone() for parameter in model.parameters())])
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('key_reduction', ['conv', 'pool'])
def test_a_batch_without_images(key_reduction):
    """As a filter of unlabelled images may leave it; ResNet takes it, too."""
    model = LaViT('nano', key_reduction=key_reduction)
    outs = model(torch.rand(0, 3, 96, 160))
    assert [tuple(out.shape) for out in outs] == [(0, 32, 24, 40), (0, 64, 12, 20), (0, 128, 6, 10), (0, 192, 3, 5)]
    sum(out.sum() for out in outs).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_learning_rates_that_decay_by_layers():
    """mmpretrain's constructor: each later layer learns faster, and all parameters are in a group."""
    load_toolbox('mmpretrain')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(
            dict(
                type='ImageClassifier',
                backbone=dict(type='LaViT', arch='nano', out_indices=(3,)),
                neck=dict(type='GlobalAveragePooling'),
                head=dict(type='LinearClsHead', num_classes=3, in_channels=192),
            )
        )
        wrapper = build_optim_wrapper(
            model,
            dict(
                optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
                constructor='LearningRateDecayOptimWrapperConstructor',
                paramwise_cfg=dict(layer_decay_rate=0.5),
            ),
        )
    names = {parameter: name for name, parameter in model.named_parameters()}
    rates = {names[p]: group['lr'] for group in wrapper.optimizer.param_groups for p in group['params']}
    assert rates.keys() == set(names.values())
    order = [  # nine blocks: two, two, three, two
        ('stages.0.patch_embed', 0),
        ('stages.0.blocks.0', 1),
        ('stages.0.norm', 2),
        ('stages.1.patch_embed', 2),
        ('stages.1.residual', 3),
        ('stages.1.blocks.0', 3),
        ('stages.2.blocks.2', 7),
        ('stages.3.blocks.1.attn.delta_psi', 9),
        ('stages.3.norm', 9),
    ]
    for name, depth in order:
        found = {rate for key, rate in rates.items() if key.startswith(f'backbone.{name}')}
        assert found == {0.5 ** (10 - depth)}, name
    assert rates['head.fc.weight'] == 1
