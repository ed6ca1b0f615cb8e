"""The configs of FSDP and DeepSpeed: read and built on the CPU, in one process."""

import copy
import inspect
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import payload
import pytest
import torch
from mmengine._strategy import DeepSpeedStrategy
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, STRATEGIES, init_default_scope
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision

from mmlavit.engine.distributed import require_strategy
from mmlavit.engine.runner import build_runner
from mmlavit.engine.strategy import SafeDeepSpeedStrategy, shard_blocks
from mmlavit.errors import UserError
from mmlavit.models import LaViT
from mmlavit.models.lavit import Block

CONFIGS = Path(__file__).parents[2] / 'configs'
PLAIN = CONFIGS / 'mask_rcnn_lavit_s.py'


@pytest.fixture
def one_process(tmp_path, monkeypatch):
    """A process group of this process alone."""
    monkeypatch.setenv('LOCAL_RANK', '0')
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/meet', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def load(name):
    """The config of a strategy, and what it adds to the config it is made from."""
    cfg, plain = Config.fromfile(CONFIGS / 'distributed' / name), Config.fromfile(PLAIN)
    init_default_scope(cfg.default_scope)
    return cfg, {key for key, value in cfg.items() if plain.get(key) != value}


def test_units():
    """The blocks of a backbone, and nothing inside them or beside it."""
    model = nn.Sequential(LaViT('nano'), nn.Linear(9, 9))
    units = [module for module in model.modules() if shard_blocks(module, False, 0)]
    assert [type(unit) for unit in units] == [Block] * 9
    assert all(shard_blocks(module, True, 0) for module in model.modules())


def weight_decays(model, wrapper):
    """Weight decay of each parameter by its name."""
    decays = {}
    for group in wrapper.optimizer.param_groups:
        decays.update((id(parameter), group['weight_decay']) for parameter in group['params'])
    names = model.named_parameters()
    return {name.replace('_fsdp_wrapped_module.', ''): decays[id(parameter)] for name, parameter in names}


@pytest.mark.filterwarnings('ignore:FSDP is switching')  # one process has nothing to shard
def test_fsdp(one_process, tmp_path, capfd):
    cfg, added = load('mask_rcnn_lavit_s_fsdp.py')
    assert added == {'runner_type', 'strategy'}
    cfg.update(launcher='pytorch', work_dir=str(tmp_path))
    require_strategy(cfg)
    plain = MODELS.build(cfg.model)
    expected = weight_decays(plain, build_optim_wrapper(plain, cfg.optim_wrapper))

    strategy = build_runner(cfg, 'train').strategy
    model, wrapper = strategy.prepare(cfg.model, optim_wrapper=cfg.optim_wrapper, dispatch_kwargs=dict(max_iters=1))
    units = FullyShardedDataParallel.fsdp_modules(model)
    assert [type(unit.module).__name__ for unit in units] == ['MaskRCNN'] + ['Block'] * 16
    # Parameters are still recognised by their modules and names.
    assert weight_decays(model, wrapper) == expected
    assert {0.0, 0.05} == set(expected.values())

    # Weights with the prefix of DDP fit; those of another model are refused.
    state = {f'module.{name}': torch.full_like(value, 0.5) for name, value in plain.state_dict().items()}
    del state['module.backbone.stages.0.norm.weight']
    strategy.load_model_state_dict(state)
    assert '1 tensors are not in the checkpoint (backbone.stages.0.norm.weight)' in capfd.readouterr().out
    for name, value in model.named_parameters():
        assert (value == 0.5).all() != name.endswith('stages.0.norm.weight'), name
    with pytest.raises(UserError, match='no weight of the checkpoint fits the model: it has patch_embed.weight'):
        strategy.load_model_state_dict({'patch_embed.weight': torch.ones(1)})


@pytest.mark.filterwarnings('ignore:FSDP is switching')
def test_fsdp_in_mixed_precision(one_process):
    """Blocks compute in bfloat16, scores included, and gradients arrive in float32."""
    torch.manual_seed(0)
    plain = LaViT('nano', drop_path_rate=0.0)
    plain.init_weights()
    policy = MixedPrecision(torch.bfloat16, reduce_dtype=torch.float32, buffer_dtype=torch.bfloat16)
    sharded = FullyShardedDataParallel(
        copy.deepcopy(plain),
        auto_wrap_policy=shard_blocks,
        mixed_precision=policy,
        device_id='cpu',
        use_orig_params=True,
    )
    x = torch.randn(2, 3, 160, 192)
    outs = sharded(x)
    for out, expected in zip(outs, plain(x), strict=True):
        assert out.dtype == torch.bfloat16
        assert (out - expected).norm() / expected.norm() < 0.05
    sum(out.float().square().mean() for out in outs).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in sharded.parameters())


def test_deepspeed():
    cfg, added = load('mask_rcnn_lavit_s_deepspeed.py')
    assert added == {'exact_resume', 'runner_type', 'strategy', 'optim_wrapper'}
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    assert type(wrapper).__name__ == 'DeepSpeedOptimWrapper'
    plain = build_optim_wrapper(model, Config.fromfile(PLAIN).optim_wrapper)
    assert weight_decays(model, wrapper) == weight_decays(model, plain)
    # Without DeepSpeed the strategy itself cannot be made; but these are arguments of it.
    assert STRATEGIES.get(cfg.strategy.pop('type')) is SafeDeepSpeedStrategy
    strategy = DeepSpeedStrategy
    inspect.signature(strategy).bind(**cfg.strategy)
    assert cfg.strategy.keys() < inspect.signature(strategy).parameters.keys()


DEEPSPEED_TYPES = {
    'deepspeed.runtime.fp16.loss_scaler': ['DynamicLossScaler', 'LossScaler'],
    'deepspeed.runtime.zero.config': ['ZeroStageEnum'],
    'deepspeed.utils.tensor_fragment': ['fragment_address'],
}


@pytest.fixture
def engine(monkeypatch):
    """As much of a DeepSpeed engine as the strategy sees, and DeepSpeed's types, whether it is installed or not."""
    kept = torch.serialization.get_safe_globals()
    for module, names in DEEPSPEED_TYPES.items():
        for index in range(module.count('.') + 1):
            parent = '.'.join(module.split('.')[: index + 1])
            monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        for name in names:
            setattr(sys.modules[module], name, type(name, (), dict(__module__=module)))
    engine = SimpleNamespace(checkpoint_engine=SimpleNamespace(), load_universal_checkpoint=lambda: False)
    monkeypatch.setattr(DeepSpeedStrategy, '_wrap_model', lambda self, model: SimpleNamespace(model=engine))
    yield engine
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(kept)


def test_deepspeed_checkpoints(engine, tmp_path):
    """DeepSpeed reads its files by our loader, which knows the types in them."""
    strategy = object.__new__(SafeDeepSpeedStrategy)
    strategy._wrap_model(nn.Identity())
    load = engine.checkpoint_engine.load
    for module, names in DEEPSPEED_TYPES.items():
        for name in names:
            kind = getattr(sys.modules[module], name)
            torch.save(dict(state=kind()), tmp_path / 'shard.pt')
            assert type(load(str(tmp_path / 'shard.pt'), map_location='cpu')['state']) is kind
    payload.write(tmp_path / 'harmful.pt', {}, tmp_path / 'trace')
    with pytest.raises(UserError, match='harmful.pt was not loaded'):
        load(str(tmp_path / 'harmful.pt'), map_location='cpu')
    assert not (tmp_path / 'trace').exists()

    engine.load_universal_checkpoint = lambda: True
    with pytest.raises(UserError, match='universal checkpoints'):
        strategy._wrap_model(nn.Identity())
