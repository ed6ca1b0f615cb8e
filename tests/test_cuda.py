"""On a GPU: every way through the attention gives what the CPU gives. Skipped without one."""

import copy
from pathlib import Path

import pytest
import torch
from mmengine.structures import InstanceData
from torch.profiler import ProfilerActivity, profile

from mmlavit import LaViT
from mmlavit.models import lavit
from mmlavit.models.arch import ARCH_ZOO
from mmlavit.models.factored import factoring_pays

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
ROOT = Path(__file__).parents[1]
SIZES = [(128, 128), (224, 224), (97, 161), (320, 544)]
VARIANTS = {
    'nano': dict(arch='nano'),
    'tiny': dict(arch='tiny'),
    'pool': dict(arch='nano', key_reduction='pool'),
    'no_ar': dict(arch='nano', attention_residual=False),
    'twin': dict(arch='nano', num_va_layers=ARCH_ZOO['nano'].depths, attention_residual=False),
    'with_cp': dict(arch='nano', with_cp=True),
}


@pytest.fixture(autouse=True)
def exact_products(monkeypatch):
    """Products of float32 in float32, not in TF32."""
    monkeypatch.setattr(torch.backends.cuda.matmul, 'allow_tf32', False)
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)


def build(variant, **kwargs):
    """A network whose transforms are far from the identity."""
    torch.manual_seed(0)
    model = LaViT(**VARIANTS[variant], drop_path_rate=0.0, **kwargs)
    model.init_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if '.delta_' in name:
                parameter.normal_(std=0.3 / parameter.shape[0] ** 0.5)
    return model


def error(found, wanted):
    """Largest relative distance of maps, by their Euclidean norms."""
    pairs = zip(found, wanted, strict=True)
    return max(float((a.double().cpu() - b.double().cpu()).norm() / b.double().cpu().norm()) for a, b in pairs)


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('variant', VARIANTS)
def test_float32(variant, size):
    model, images = build(variant).eval(), torch.randn(2, 3, *size)
    with torch.no_grad():
        wanted = copy.deepcopy(model).double()(images.double())
        found = model.cuda()(images.cuda())
    assert error(found, wanted) < 1e-5


@pytest.mark.parametrize('cast', ['autocast', 'whole'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('variant', VARIANTS)
def test_half_precision(variant, size, dtype, cast):
    """Within what rounding explains: half precision has 10 bits after the point, bfloat16 has 7."""
    model, images = build(variant).eval().cuda(), torch.randn(2, 3, *size, device='cuda')
    with torch.no_grad():
        wanted = model(images)
        if cast == 'whole':
            model, images = model.to(dtype), images.to(dtype)
        with torch.autocast('cuda', dtype, enabled=cast == 'autocast'):
            found = model(images)
    assert error(found, wanted) < 32 * torch.finfo(dtype).eps


@pytest.mark.parametrize('variant', VARIANTS)
def test_gradients(variant):
    model, images = build(variant).train(), torch.randn(2, 3, 160, 224)
    weights = torch.randn(2, 1, 1, 1)

    def gradients(model, images):
        loss = sum((out * weights.to(out)).square().mean() for out in model(images))
        return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)

    wanted = gradients(copy.deepcopy(model).double(), images.double())
    found = gradients(model.cuda(), images.cuda())
    assert [a is None for a in found] == [b is None for b in wanted]
    # Together: some, such as of biases before a norm, are zero but for rounding.
    flat = [torch.cat([g.flatten().double().cpu() for g in some if g is not None]) for some in (found, wanted)]
    assert error(flat[:1], flat[1:]) < 1e-4


def count_factored(monkeypatch):
    """Count the layers that put scores into factors."""
    counted = []

    def pays(scores, query_grid):
        pays = factoring_pays(scores, query_grid)
        counted.extend([query_grid] * pays)
        return pays

    monkeypatch.setattr(lavit, 'factoring_pays', pays)
    return counted


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('variant', ['nano', 'tiny', 'with_cp'])
def test_gradients_in_half_precision(variant, dtype, monkeypatch):
    """As near to those in float32 with scores in factors as without."""
    model, images = build(variant).train().cuda(), torch.randn(2, 3, 256, 320, device='cuda')
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def gradients(dtype=None):
        with torch.autocast('cuda', dtype, enabled=dtype is not None):
            outs = model(images)
        loss = sum(out.float().square().mean() for out in outs)
        return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, parameters)])

    wanted = gradients()
    counted = count_factored(monkeypatch)
    factored = error([gradients(dtype)], [wanted])
    assert len(counted) >= 2  # stages; a checkpointed block counts twice
    monkeypatch.setattr(lavit, 'factoring_pays', lambda scores, query_grid: False)
    plain = error([gradients(dtype)], [wanted])
    assert factored < 2 * plain + 1e-3
    assert factored < 64 * torch.finfo(dtype).eps


def test_factors_keep_scores_out_of_memory(monkeypatch):
    """No less-attention layer of a large image computes a softmax of its own."""
    model = LaViT('small').eval().cuda().half()
    images = torch.randn(1, 3, 512, 768, device='cuda', dtype=torch.half)
    counted = count_factored(monkeypatch)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        model(images)
    assert counted == [(7, 7), (7, 7), (14, 14), (7, 7)]
    names = {event.key for event in profiler.key_averages()}
    assert 'aten::_softmax' not in names
    assert 'aten::_scaled_dot_product_attention_math' not in names


def test_one_process_of_nccl(tmp_path):
    """A step of DistributedDataParallel, in mixed precision, gives the gradients of the model alone."""
    model, images = build('nano').train().cuda(), torch.randn(2, 3, 160, 224, device='cuda')
    torch.distributed.init_process_group('nccl', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(copy.deepcopy(model))
        for module in (model, wrapped):
            with torch.autocast('cuda', torch.float16):
                outs = module(images)
            sum(out.float().square().mean() for out in outs).backward()
        found, wanted = (
            torch.cat([parameter.grad.flatten() for parameter in module.parameters()]) for module in (wrapped, model)
        )
    finally:
        torch.distributed.destroy_process_group()
    assert error([found], [wanted]) < 1e-2


@pytest.mark.parametrize('training', [False, True])
def test_compiled_in_half_precision(training):
    model, images = build('nano').cuda().train(training), torch.randn(2, 3, 256, 320, device='cuda')
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True)
    with torch.set_grad_enabled(training):
        wanted = model(images)
        with torch.autocast('cuda', torch.float16):
            found = compiled(images)
    assert error(found, wanted) < 32 * torch.finfo(torch.float16).eps
    if training:
        gradients = []
        for outs, parameters in ((found, compiled.parameters()), (wanted, model.parameters())):
            grads = torch.autograd.grad(sum(out.float().square().mean() for out in outs), list(parameters))
            gradients.append(torch.cat([grad.flatten() for grad in grads]))
        assert error(gradients[:1], gradients[1:]) < 64 * torch.finfo(torch.float16).eps


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('variant', ['nano', 'pool', 'twin'])
def test_compiled(variant, training):
    model, images = build(variant).cuda().train(training), torch.randn(2, 3, 160, 224, device='cuda')
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True)
    with torch.set_grad_enabled(training):
        wanted, found = model(images), compiled(images)
    assert error(found, wanted) < 1e-4
    if training:
        gradients = []
        for outs, parameters in ((found, compiled.parameters()), (wanted, model.parameters())):
            grads = torch.autograd.grad(sum(out.square().mean() for out in outs), list(parameters), allow_unused=True)
            gradients.append(torch.cat([grad.flatten() for grad in grads if grad is not None]))
        assert error(gradients[:1], gradients[1:]) < 1e-3


@pytest.mark.parametrize('residual', [True, False])
def test_attention_is_fused(residual):
    """Scores of all queries on all keys are never stored: not without and not with the attention residual."""
    model = build('nano' if residual else 'no_ar').eval().cuda().half()
    images = torch.randn(1, 3, 800, 1344, device='cuda', dtype=torch.half)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        model(images)
    names = {event.key for event in profiler.key_averages()}
    assert 'aten::_scaled_dot_product_attention_math' not in names
    assert any('flash_attention' in name or 'efficient_attention' in name or 'cudnn' in name for name in names)


def test_detector_trains_and_predicts():
    """Mask R-CNN, whose ops are torchvision's, with the diagonality loss in mixed precision."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.registry import MODELS, DefaultScope

    from mmlavit.utils.config_files import load_config
    from mmlavit.utils.toolbox import load_toolbox

    load_toolbox('mmdet')
    cfg = load_config(str(ROOT / 'configs/handwritten/mask_rcnn_lavit_nano.py'))
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model).cuda()
    sample = DetDataSample(metainfo=dict(img_shape=(256, 256), ori_shape=(256, 256), scale_factor=(1.0, 1.0)))
    masks = torch.zeros(2, 256, 256, dtype=torch.uint8).numpy()
    masks[0, 20:90, 30:90] = masks[1, 100:200, 100:240] = 1
    boxes = torch.tensor([[30.0, 20, 90, 90], [100, 100, 240, 200]])
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([0, 1]), masks=BitmapMasks(masks, 256, 256))
    inputs = [torch.randint(0, 256, (3, 256, 256), dtype=torch.uint8)]
    losses = {}
    for dtype in (None, torch.float16, torch.bfloat16):
        torch.manual_seed(1)  # of the samplers
        data = model.data_preprocessor(dict(inputs=inputs, data_samples=[copy.deepcopy(sample)]), training=True)
        with torch.autocast('cuda', dtype, enabled=dtype is not None):
            total, _ = model.parse_losses(model(**data, mode='loss'))
        total.backward()
        losses[dtype] = float(total)
    assert losses[torch.float16] == pytest.approx(losses[None], rel=0.05)
    assert losses[torch.bfloat16] == pytest.approx(losses[None], rel=0.1)
    model.eval()
    results = {}
    for device in ('cuda', 'cpu'):
        model.to(device)
        with torch.no_grad():
            results[device] = model.test_step(dict(inputs=inputs, data_samples=[copy.deepcopy(sample)]))[0]
    scores = {device: result.pred_instances.scores.cpu() for device, result in results.items()}
    assert len(scores['cpu']) and scores['cuda'].shape == scores['cpu'].shape
    torch.testing.assert_close(scores['cuda'], scores['cpu'], rtol=1e-3, atol=1e-4)
