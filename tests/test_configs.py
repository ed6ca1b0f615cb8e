"""Every shipped config: its name, its model, its data, and that each of its keys is read."""

import re
from copy import deepcopy
from pathlib import Path

import pytest
import synthetic
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, DefaultScope, init_default_scope
from mmengine.runner import Runner
from torch import nn

ROOT = Path(__file__).parents[1] / 'configs'
CONFIGS = sorted(
    str(path.relative_to(ROOT)) for path in ROOT.rglob('*.py') if '_base_' not in path.relative_to(ROOT).parts
)
HANDWRITTEN = [name for name in CONFIGS if name.startswith('handwritten/')]

SIZE = (65, 97)  # odd, and not a multiple of any stride

METHODS = 'mask_rcnn|retinanet|upernet|fpn'
NAME = re.compile(
    rf'({METHODS})_lavit_[tsb](_\w+)?\.py'  # detection and segmentation: COCO, ADE20K
    r'|lavit_[tsb]_in1k(_\w+)?\.py'  # classification: ImageNet-1k
    rf'|handwritten/({METHODS}|classify)_lavit_nano(_\w+)?\.py'
)

# What the toolboxes' scripts read beside the arguments of Runner.from_cfg.
OTHER_KEYS = {'tta_model', 'tta_pipeline'}
RUNNER_KEYS = {
    'auto_scale_lr',
    'custom_hooks',
    'custom_imports',
    'data_preprocessor',
    'default_hooks',
    'default_scope',
    'env_cfg',
    'load_from',
    'log_level',
    'log_processor',
    'model',
    'optim_wrapper',
    'param_scheduler',
    'randomness',
    'resume',
    'visualizer',
    *(f'{split}_{part}' for split in ('train', 'val', 'test') for part in ('cfg', 'dataloader')),
    *(f'{split}_evaluator' for split in ('val', 'test')),
}


def load(name: str) -> Config:
    """Read a config and enter its toolbox."""
    cfg = Config.fromfile(ROOT / name)
    init_default_scope(cfg.default_scope)
    return cfg


@pytest.fixture(autouse=True)
def plain_dumps(monkeypatch):
    """A Runner formats its config three times, which takes longer than most tests here."""
    monkeypatch.setattr(Config, 'pretty_text', property(lambda self: repr(self)))


@pytest.fixture(autouse=True)
def leave_scope():
    """Forget the toolbox that a test entered."""
    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


@pytest.fixture(scope='session')
def data_root(tmp_path_factory) -> Path:
    """A folder in which ``data/`` holds all four data sets in miniature."""
    root = tmp_path_factory.mktemp('data_root')
    for write in (
        synthetic.write_coco,
        synthetic.write_ade20k,
        synthetic.write_imagenet,
        synthetic.write_handwritten,
    ):
        write(root)
    return root


def small_model(cfg: Config) -> nn.Module:
    """The config's model, for the CPU, odd sizes and no download."""
    model = deepcopy(cfg.model)
    model.backbone.init_cfg = None
    if cfg.default_scope == 'mmseg':
        model.data_preprocessor.size = SIZE
    make_quick(model)
    return revert_sync_batchnorm(MODELS.build(model))


def make_quick(model: ConfigDict) -> None:
    """Let an untrained detector find something, but not a hundred masks of nothing."""
    if model.type == 'MaskRCNN':
        model.train_cfg.rcnn.sampler.num = 16
        model.test_cfg.rpn.max_per_img = 20
    test_cfg = (model.get('test_cfg') or {}).get('rcnn', model.get('test_cfg'))
    if 'score_thr' in (test_cfg or {}):
        test_cfg.update(score_thr=0.0, max_per_img=5)


def num_classes(cfg: Config) -> int:
    """Number of classes that the config's head tells apart."""
    model = cfg.model
    heads = [model.get(key) for key in ('head', 'bbox_head', 'decode_head')]
    heads += [model.get('roi_head', {}).get('bbox_head')]
    return next(head.num_classes for head in heads if head)


@pytest.mark.parametrize('name', CONFIGS)
def test_name_follows_the_pattern(name):
    assert NAME.fullmatch(name)


def test_all_promised_configs_are_there():
    promised = {
        'mask_rcnn_lavit_s.py',
        'retinanet_lavit_s.py',
        'retinanet_lavit_t.py',
        'upernet_lavit_s.py',
        'fpn_lavit_s.py',
        'lavit_t_in1k.py',
        'lavit_s_in1k.py',
        'lavit_b_in1k.py',
        *(f'handwritten/{n}_lavit_nano.py' for n in ['mask_rcnn', 'retinanet', 'upernet', 'classify']),
    }
    assert promised <= set(CONFIGS)


@pytest.mark.parametrize('name', CONFIGS)
def test_top_level_keys_are_read(name):
    """No key is a typing error: a helper variable must stand somewhere in what is read."""
    cfg = load(name)
    read = {key: value for key, value in cfg.items() if key in RUNNER_KEYS | OTHER_KEYS}
    for key in cfg.keys() - read.keys():
        assert _contains(read, cfg[key]), f'nothing reads {key}'


def _contains(tree, value) -> bool:
    if tree == value:
        return True
    if isinstance(tree, dict):
        return any(_contains(item, value) for item in tree.values())
    if isinstance(tree, (list, tuple)):
        return any(_contains(item, value) for item in tree)
    return isinstance(tree, str) and isinstance(value, str) and tree.startswith(value)


@pytest.mark.parametrize('name', CONFIGS)
def test_carries_what_upstream_scripts_need(name):
    cfg = load(name)
    assert cfg.custom_imports == dict(imports=['mmlavit'], allow_failed_imports=False)
    # --auto-scale-lr: the batch size of the learning rate is a whole number of processes.
    assert cfg.auto_scale_lr.enable is False
    assert cfg.auto_scale_lr.base_batch_size % cfg.train_dataloader.batch_size == 0
    # --show-dir
    assert 'visualization' in cfg.default_hooks
    # Upstream's train.py of mmpretrain asks for persistent workers where a config is silent.
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        assert loader.persistent_workers == (loader.num_workers > 0)


@pytest.mark.parametrize('name', [name for name in CONFIGS if re.match(METHODS, name)])
def test_backbone_weights_are_one_option(name):
    assert load(name).model.backbone.init_cfg == dict(type='Pretrained', checkpoint=None, prefix='backbone.')


def test_classifier_checkpoint_starts_a_detector(tmp_path):
    """A checkpoint of ImageNet training is what model.backbone.init_cfg.checkpoint takes."""
    classifier = MODELS.build(load('lavit_t_in1k.py').model)
    file = str(tmp_path / 'lavit_t_in1k.pth')
    torch.save(dict(state_dict=classifier.state_dict()), file)

    cfg = load('retinanet_lavit_t.py')
    cfg.merge_from_dict({'model.backbone.init_cfg.checkpoint': file})
    detector = MODELS.build(cfg.model)
    detector.init_weights()
    expected, loaded = classifier.backbone.state_dict(), detector.backbone.state_dict()
    assert expected.keys() == loaded.keys()
    assert all(torch.equal(expected[key], loaded[key]) for key in expected)


@pytest.mark.parametrize('name', CONFIGS)
def test_model_takes_odd_sizes(name):
    """A loss step and predictions, plain and with test-time augmentation."""
    torch.manual_seed(0)
    cfg = load(name)
    scope, classes = cfg.default_scope, num_classes(cfg)
    model = small_model(cfg)
    sizes = [SIZE, (71, 50)] if scope == 'mmdet' else [SIZE] * 2

    model.train()
    data = synthetic.make_batch(scope, classes, sizes)
    losses = model(**model.data_preprocessor(data, training=True), mode='loss')
    total, _ = model.parse_losses(losses)
    assert torch.isfinite(total)
    total.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert all(gradient is not None for gradient in gradients)

    model.eval()
    data = synthetic.make_batch(scope, classes, sizes[:1])
    with torch.no_grad():
        check_prediction(cfg, model.test_step(data)[0], sizes[0], classes)
        tta_model = MODELS.build(dict(cfg.tta_model, module=model)).eval()
        views = [data, synthetic.flipped_view(data)]
        views = {key: [view[key] for view in views] for key in data}
        check_prediction(cfg, tta_model.test_step(views)[0], sizes[0], classes)


def check_prediction(cfg: Config, sample, size: tuple[int, int], classes: int) -> None:
    """Assert that a predicted sample has the structure that metrics and visualizers take."""
    if cfg.default_scope == 'mmpretrain':
        assert sample.pred_score.shape == (classes,)
    elif cfg.default_scope == 'mmseg':
        assert sample.pred_sem_seg.data.shape[-2:] == size
        assert sample.pred_sem_seg.data.max() < classes
    else:
        count = len(sample.pred_instances)
        assert 0 < count <= 100
        assert sample.pred_instances.bboxes.shape == (count, 4)
        assert sample.pred_instances.labels.max() < classes
        if cfg.model.type == 'MaskRCNN':
            assert sample.pred_instances.masks.shape == (count, *size)


@pytest.mark.parametrize('name', CONFIGS)
def test_everything_around_the_model_builds(name, data_root, tmp_path, monkeypatch):
    """Loops, data, evaluators, hooks, visualizer, optimizer and schedule accept all their keys."""
    monkeypatch.chdir(data_root)
    cfg = load(name)
    runner = make_runner(cfg, tmp_path)
    for loop in (runner.build_train_loop(runner._train_loop), runner.val_loop, runner.test_loop):
        assert loop.dataloader.dataset[0]['inputs'].dtype == torch.uint8
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    assert_weight_decay(runner)
    assert runner.build_param_scheduler(runner.param_schedulers)

    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    views = DATASETS.build(cfg.test_dataloader.dataset)[0]
    assert len(views['inputs']) == len(views['data_samples']) > 1


def make_runner(cfg: Config, work_dir: Path) -> Runner:
    """A runner of the config in this process alone."""
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = str(work_dir)  # runners and visualizers are kept by name
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.serialize_data = False  # it collects garbage each time, which is slow
    return Runner.from_cfg(cfg)


def assert_weight_decay(runner: Runner) -> None:
    """Exactly norms, biases, less-attention transforms and LayerScale are free of decay."""
    decay = {}
    for group in runner.optim_wrapper.optimizer.param_groups:
        decay.update((id(parameter), group['weight_decay']) for parameter in group['params'])
    norms = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
    exempt = {'bias', 'delta_psi', 'delta_theta', 'layer_scale'}
    for prefix, module in runner.model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            free = isinstance(module, norms) or name in exempt
            assert (decay[id(parameter)] == 0) == free, f'{prefix}.{name}'


@pytest.mark.parametrize('name', HANDWRITTEN)
def test_handwritten_configs_run(name, data_root, tmp_path, monkeypatch):
    """Training, validation and testing with test-time augmentation, on a few generated pictures."""
    monkeypatch.chdir(data_root)
    cfg = load(name)
    cfg.train_dataloader.batch_size = 4
    cfg.train_cfg.update(max_epochs=1) if cfg.train_cfg.by_epoch else cfg.train_cfg.update(max_iters=2)
    make_quick(cfg.model)
    runner = make_runner(cfg, tmp_path / 'train')
    runner.train()
    assert 'train/loss_diag' in runner.message_hub.log_scalars
    [best] = tmp_path.glob('train/best_*.pth')

    cfg.load_from = str(best)
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    metrics = make_runner(cfg, tmp_path / 'test').test()
    assert cfg.default_hooks.checkpoint.save_best in metrics
