"""Every shipped config: its name, its model, its data, one training step, and that each of its keys is read."""

import copy
import dataclasses
import functools
import gc
import re
from pathlib import Path

import pytest
import synthetic
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.registry import DATASETS, HOOKS, MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn

from mmlavit.engine.hooks import DiagonalityLossHook
from mmlavit.models.arch import resolve_arch
from mmlavit.models.lavit import DropPath

ROOT = Path(__file__).parents[1] / 'configs'
# configs/distributed and configs/experiments have tests of their own.
CONFIGS = sorted(
    str(path.relative_to(ROOT))
    for path in ROOT.rglob('*.py')
    if path.relative_to(ROOT).parts[0] not in ('_base_', 'distributed', 'experiments')
)
HANDWRITTEN = [name for name in CONFIGS if name.startswith('handwritten/')]

SIZE = (65, 97)  # odd, and not a multiple of any stride

NAME = re.compile(
    r'(?:(?P<method>mask_rcnn|cascade_mask_rcnn|retinanet|upernet|fpn)_)?lavit_(?P<arch>[tsb]|pvtv2_b2)(?P<size>_384)?'
    r'(?:_(?P<difference>pool|no_ar|no_diag|vanilla|va_\d{4}))?(?P<end>_3x|_in1k)?\.py'
)
ARCHS = dict(t='tiny', s='small', b='base', pvtv2_b2='pvt_v2_b2')
# Model, and epochs or iterations, of each method; without a method, of the classifiers.
METHODS = {
    None: ('ImageClassifier', 300),
    'retinanet': ('RetinaNet', 12),
    'mask_rcnn': ('MaskRCNN', 12),
    'cascade_mask_rcnn': ('CascadeRCNN', 12),
    'upernet': ('EncoderDecoder', 160000),
    'fpn': ('EncoderDecoder', 80000),
}
# One of each method predicts, too; the handwritten ones are trained and tested.
PREDICTING = [
    'lavit_t_in1k.py',
    'retinanet_lavit_t.py',
    'mask_rcnn_lavit_t.py',
    'cascade_mask_rcnn_lavit_s_3x.py',
    'upernet_lavit_t.py',
    'fpn_lavit_t.py',
]
IMAGENET = [name for name in CONFIGS if name.endswith('_in1k.py')]
OTHERS = [name for name in CONFIGS if name not in IMAGENET + HANDWRITTEN]

# What the toolboxes' scripts read beside the arguments of Runner.from_cfg.
OTHER_KEYS = {'tta_model', 'tta_pipeline', 'exact_resume'}
# Helper variables that are plain numbers, which stand anywhere.
NUMBERS = {'channels'}
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
    cfg = copy.deepcopy(read_config(name))
    init_default_scope(cfg.default_scope)
    return cfg


@functools.cache
def read_config(name: str) -> Config:
    """Read a config once; that takes longer than all else."""
    return Config.fromfile(ROOT / name)


@pytest.fixture(autouse=True)
def plain_dumps(monkeypatch):
    """A Runner formats its config three times, which takes longer than most tests here."""
    monkeypatch.setattr(Config, 'pretty_text', property(lambda self: repr(self)))


@pytest.fixture(scope='session')
def data_root(tmp_path_factory) -> Path:
    """A folder in which ``data/`` holds all four datasets in miniature."""
    root = tmp_path_factory.mktemp('data_root')
    for write in (
        synthetic.write_coco,
        synthetic.write_ade20k,
        synthetic.write_imagenet,
        synthetic.write_handwritten,
    ):
        write(root)
    return root


def make_small(cfg: Config) -> None:
    """Change a config for the CPU, pictures of ``SIZE``, an untrained detector and no download.

    Of each stage at most two layers stay, of its own widths: both vanilla, or one of each kind, as the config has them.
    """
    model = cfg.model
    arch = resolve_arch(model.backbone.get('arch', 'small'))
    vanilla = model.backbone.pop('num_va_layers', None) or arch.num_va_layers
    depths = [min(depth, 2) for depth in arch.depths]
    kept = [depth if count == whole else 1 for count, depth, whole in zip(vanilla, depths, arch.depths)]
    model.backbone.arch = dict(dataclasses.asdict(arch), depths=depths, num_va_layers=kept)
    if cfg.default_scope == 'mmseg':
        model.data_preprocessor.size = SIZE
    make_quick(model)


def make_quick(model: ConfigDict) -> None:
    """Let an untrained detector find something, but not a hundred masks of nothing."""
    if 'roi_head' in model:
        rcnn = model.train_cfg.rcnn
        for stage in rcnn if isinstance(rcnn, list) else [rcnn]:
            stage.sampler.num = 16
        model.train_cfg.rpn.allowed_border = -1  # anchors of the higher levels reach out of small pictures
        model.test_cfg.rpn.max_per_img = 20
    test_cfg = (model.get('test_cfg') or {}).get('rcnn', model.get('test_cfg'))
    if 'score_thr' in (test_cfg or {}):
        test_cfg.update(score_thr=0.0, max_per_img=5)


def num_classes(cfg: Config) -> int:
    """Number of classes that the config's head tells apart."""
    model = cfg.model
    heads = [model.get(key) for key in ('head', 'bbox_head', 'decode_head')]
    heads += [model.get('roi_head', {}).get('bbox_head')]
    head = next(head for head in heads if head)
    return (head[0] if isinstance(head, list) else head).num_classes


@pytest.mark.parametrize('name', [name for name in CONFIGS if name not in HANDWRITTEN])
def test_name_says_what_the_config_does(name):
    match = NAME.fullmatch(name)
    assert match
    cfg, backbone, difference = load(name), load(name).model.backbone, match['difference'] or ''
    assert backbone.get('arch', 'small') == ARCHS[match['arch']]
    assert backbone.get('key_reduction', 'conv') == ('pool' if difference == 'pool' else 'conv')
    assert backbone.get('attention_residual', True) == (difference not in ('no_ar', 'vanilla'))

    depths = resolve_arch(ARCHS[match['arch']]).depths
    num_va_layers = tuple(int(digit) for digit in difference[3:]) if difference.startswith('va_') else None
    num_va_layers = depths if difference == 'vanilla' else num_va_layers
    assert backbone.get('num_va_layers') == num_va_layers
    has_loss = any(hook.type == 'DiagonalityLossHook' for hook in cfg.custom_hooks)
    assert has_loss == (num_va_layers != depths and difference != 'no_diag')

    method, end = match['method'], match['end']
    assert (method is None) == (end == '_in1k')
    model, length = METHODS[method]
    assert cfg.model.type == model
    steps = [step.type for step in cfg.train_dataloader.dataset.pipeline]
    if match['size']:
        length = 30
        assert cfg.train_dataloader.dataset.pipeline[1].scale == 384
    if cfg.default_scope == 'mmdet':
        assert ('RandomChoice' in steps, 'Resize' in steps) == ((True, False) if end == '_3x' else (False, True))
        length = 36 if end == '_3x' else length
    assert cfg.train_cfg.get('max_epochs', cfg.train_cfg.get('max_iters')) == length
    # The schedule ends when the training does.
    assert cfg.param_scheduler[-1].end == length


@pytest.mark.parametrize('name', HANDWRITTEN)
def test_handwritten_names(name):
    assert re.fullmatch(r'handwritten/(mask_rcnn|retinanet|upernet|classify)_lavit_nano\.py', name)


def test_all_promised_configs_are_there():
    differences = ['pool', 'no_ar', 'no_diag', 'vanilla', 'va_1111', 'va_2222', 'va_3463']
    promised = {
        *(f'lavit_{arch}_in1k.py' for arch in 'tsb'),
        'lavit_s_384_in1k.py',
        *(f'lavit_s_{difference}_in1k.py' for difference in differences),
        *(
            f'{method}_lavit_{arch}{end}.py'
            for method in ('retinanet', 'mask_rcnn')
            for arch in 'tsb'
            for end in ('', '_3x')
        ),
        *(f'mask_rcnn_lavit_s_{difference}.py' for difference in differences),
        'retinanet_lavit_s_pool.py',
        'cascade_mask_rcnn_lavit_s_3x.py',
        *(f'{method}_lavit_{arch}.py' for method in ('upernet', 'fpn') for arch in ('t', 's', 'b', 's_pool')),
        'lavit_pvtv2_b2_in1k.py',
        *(f'{method}_lavit_pvtv2_b2.py' for method in ('retinanet', 'mask_rcnn', 'upernet')),
        *(f'handwritten/{n}_lavit_nano.py' for n in ['mask_rcnn', 'retinanet', 'upernet', 'classify']),
    }
    assert promised <= set(CONFIGS)


def test_nothing_is_inherited_from_the_toolboxes():
    """Their packages have other names in the maintained and in the official releases."""
    assert not [path for path in ROOT.rglob('*.py') if '::' in path.read_text()]


@pytest.mark.parametrize('name', CONFIGS)
def test_top_level_keys_are_read(name):
    """No key is a typing error: a helper variable must stand somewhere in what is read."""
    cfg = load(name)
    read = {key: value for key, value in cfg.items() if key in RUNNER_KEYS | OTHER_KEYS}
    for key in cfg.keys() - read.keys():
        assert key in NUMBERS or not isinstance(cfg[key], (bool, int, float)), f'nothing can tell whether {key} is read'
        assert _contains(read, cfg[key]), f'nothing reads {key}'


def _contains(tree, value) -> bool:
    if tree == value:
        return True
    if isinstance(tree, dict):
        if isinstance(value, dict) and all(key in tree and tree[key] == value[key] for key in value):
            return True
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


@pytest.mark.parametrize('name', OTHERS)
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


@pytest.mark.parametrize('name', IMAGENET)
def test_imagenet_recipe(name):
    """RandAugment, erasing, Mixup, CutMix, label smoothing, and an average of the weights."""
    cfg = load(name)
    steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    assert steps['RandAugment'].magnitude_level == 9
    assert steps['RandomErasing'].erase_prob == 0.25
    assert [augment.type for augment in cfg.model.train_cfg.augments] == ['Mixup', 'CutMix']
    assert cfg.model.head.loss.label_smooth_val == 0.1
    assert [hook.type for hook in cfg.custom_hooks].count('EMAHook') == 1


@pytest.mark.parametrize('name', PREDICTING)
def test_predicts_at_odd_sizes(name):
    """Plain and with test-time augmentation."""
    torch.manual_seed(0)
    cfg = load(name)
    make_small(cfg)
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    data = synthetic.make_batch(cfg.default_scope, num_classes(cfg), [SIZE])
    with torch.no_grad():
        check_prediction(cfg, model.test_step(data)[0])
        tta_model = MODELS.build(dict(cfg.tta_model, module=model)).eval()
        steps = [step for options in cfg.tta_pipeline[-1]['transforms'] for step in options]
        mirrored = any(step['type'] == 'RandomFlip' and step.get('prob') != 0 for step in steps)
        views = [data, synthetic.flipped_view(data) if mirrored else data]
        views = {key: [view[key] for view in views] for key in data}
        check_prediction(cfg, tta_model.test_step(views)[0])


@pytest.mark.parametrize('name', ['retinanet_lavit_t.py', 'handwritten/retinanet_lavit_nano.py'])
def test_focal_loss_and_scores_agree(name):
    """Both by sigmoid: mmdet's head asks the config, where silence means a softmax with a background class."""
    cfg = load(name)
    head = MODELS.build(cfg.model).bbox_head
    assert head.use_sigmoid_cls == head.loss_cls.use_sigmoid
    assert head.cls_out_channels == num_classes(cfg)


def check_prediction(cfg: Config, sample) -> None:
    """Assert that a predicted sample has the structure that metrics and visualizers take."""
    classes = num_classes(cfg)
    if cfg.default_scope == 'mmpretrain':
        assert sample.pred_score.shape == (classes,)
    elif cfg.default_scope == 'mmseg':
        assert sample.pred_sem_seg.data.shape[-2:] == SIZE
        assert sample.pred_sem_seg.data.max() < classes
    else:
        count = len(sample.pred_instances)
        assert 0 < count <= 100
        assert sample.pred_instances.bboxes.shape == (count, 4)
        assert sample.pred_instances.labels.max() < classes
        if 'roi_head' in cfg.model:
            assert sample.pred_instances.masks.shape == (count, *SIZE)


@pytest.mark.parametrize('name', CONFIGS)
def test_builds_and_takes_a_training_step(name, data_root, tmp_path, monkeypatch):
    """Model, loops, data, evaluators, hooks, visualizer, optimizer and schedule accept all their keys."""
    monkeypatch.chdir(data_root)
    torch.manual_seed(0)
    cfg = load(name)
    make_small(cfg)
    runner = make_runner(cfg, tmp_path)
    for loop in (runner.build_train_loop(runner._train_loop), runner.val_loop, runner.test_loop):
        assert loop.dataloader.dataset[0]['inputs'].dtype == torch.uint8
    runner.model = revert_sync_batchnorm(runner.model)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    assert_parameter_groups(runner)
    assert runner.build_param_scheduler(runner.param_schedulers)
    take_step(runner)

    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    views = DATASETS.build(cfg.test_dataloader.dataset)[0]
    assert len(views['inputs']) == len(views['data_samples']) > 1
    if cfg.default_scope == 'mmdet':  # which asks for it when it merges views
        assert all('flip' in view for view in views['data_samples'])
    # A runner refers to itself, so all of them together would take 10 GB.
    del runner, loop
    gc.collect()


def take_step(runner: Runner) -> None:
    """Train with one batch of two small pictures; every parameter has to move."""
    cfg, model, wrapper = runner.cfg, runner.model.train(), runner.optim_wrapper
    diagonality = [hook for hook in runner.hooks if isinstance(hook, DiagonalityLossHook)]
    for hook in diagonality:
        hook.attach(model)
    for module in model.modules():
        if isinstance(module, DropPath):
            module.rate = 0  # a branch that both pictures drop gets no gradient
    for group in wrapper.optimizer.param_groups:
        group['lr'] = group['initial_lr']  # the first steps of a warm-up are below what float32 resolves
    sizes = [SIZE, (71, 50)] if cfg.default_scope == 'mmdet' else [SIZE] * 2
    data = synthetic.make_batch(cfg.default_scope, num_classes(cfg), sizes)
    losses = model(**model.data_preprocessor(data, training=True), mode='loss')
    assert ('loss_diag' in losses) == bool(diagonality)
    total, _ = model.parse_losses(losses)
    assert torch.isfinite(total)
    wrapper.backward(total)
    parameters = dict(model.named_parameters())
    assert all(parameter.grad is not None for parameter in parameters.values())
    before = {key: parameter.detach().clone() for key, parameter in parameters.items()}
    wrapper.step()
    assert all(torch.isfinite(parameter).all() for parameter in parameters.values())
    assert [key for key in parameters if torch.equal(before[key], parameters[key])] == []


def make_runner(cfg: Config, work_dir: Path) -> Runner:
    """A runner of the config in this process alone."""
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = str(work_dir)  # runners and visualizers are kept by name
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.serialize_data = False  # it collects garbage each time, which is slow
    return Runner.from_cfg(cfg)


def assert_parameter_groups(runner: Runner) -> None:
    """Exactly norms, biases, less-attention transforms and LayerScale are free of decay; one rate for all.

    Except for transforms where the rate is that of ImageNet: they learn at that of COCO.
    """
    settings, (rate, decay) = {}, (runner.cfg.optim_wrapper.optimizer[key] for key in ('lr', 'weight_decay'))
    for group in runner.optim_wrapper.optimizer.param_groups:
        settings.update((id(parameter), (group['lr'], group['weight_decay'])) for parameter in group['params'])
    norms = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
    exempt = {'bias', 'delta_psi', 'delta_theta', 'layer_scale'}
    for prefix, module in runner.model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            free = isinstance(module, norms) or name in exempt
            slow = rate == 1e-3 and name in {'delta_psi', 'delta_theta'}
            expected = 1e-4 if slow else rate, 0 if free else decay
            assert settings[id(parameter)] == expected, f'{prefix}.{name}'


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


def test_imagenet_training_and_fine_tuning(data_root, tmp_path, monkeypatch):
    """Two steps at 224 with averaged weights, then two at 384 that start from what the first ones saved."""
    monkeypatch.chdir(data_root)
    checkpoints = []
    for name in ('lavit_s_in1k.py', 'lavit_s_384_in1k.py'):
        cfg = load(name)
        cfg.merge_from_dict({'model.backbone.arch': 'nano', 'model.head.in_channels': 192, 'train_cfg.max_epochs': 2})
        cfg.train_dataloader.batch_size = 2
        cfg.randomness.seed = len(checkpoints)  # else both would start from the same weights anyway
        if 'load_from' in cfg:
            assert cfg.load_from == 'work_dirs/lavit_s_in1k/epoch_300.pth'
            cfg.load_from = str(checkpoints[-1])
        runner = make_runner(cfg, tmp_path / name)
        runner.train()
        checkpoints.append(tmp_path / name / 'epoch_2.pth')

    first, second = (torch.load(file, weights_only=False) for file in checkpoints)
    # Saved is the average; the weights that were trained lie beside it.
    head = 'head.fc.weight'
    assert not torch.equal(first['state_dict'][head], first['ema_state_dict'][f'module.{head}'])
    # Steps at the small rate of fine-tuning are all that separates the second from the first.
    torch.testing.assert_close(second['state_dict'][head], first['state_dict'][head], rtol=0, atol=1e-4)
    assert not torch.equal(second['state_dict'][head], first['state_dict'][head])


def test_readme_options(tmp_path):
    """What the README's recipe section leads to builds: EMA in a config of one's own, checkpointing by an option."""
    text = (ROOT / 'README.md').read_text()
    assert '(../docs/recipes.md#average-of-the-weights-ema)' in text
    blocks = re.findall(r'```python\n(.*?)```', (ROOT.parent / 'docs/recipes.md').read_text(), re.DOTALL)
    [code] = [block for block in blocks if "'EMAHook'" in block]
    file = tmp_path / 'mine.py'
    file.write_text(code.replace("'./", f"'{ROOT}/"))
    cfg = Config.fromfile(file)
    init_default_scope(cfg.default_scope)
    assert [HOOKS.build(hook).__class__.__name__ for hook in cfg.custom_hooks] == [
        'DiagonalityLossHook',
        'CheckNumbersHook',
        'EMAHook',
    ]
    [option] = re.findall(r'`--cfg-options (model\.backbone\.with_cp=True)`', text)
    key, value = option.split('=')
    cfg.merge_from_dict({key: value == 'True'})
    assert all(stage.with_cp for stage in MODELS.build(cfg.model).backbone.stages)
