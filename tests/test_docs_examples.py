"""Python in the documents: scripts run and print what they say, configs build and read data of the form they state."""

import contextlib
import io
import json
import re
import shutil

import cv2
import numpy as np
import pytest
import torch
from documents import DOCUMENTS, ROOT, code_blocks, example_files, name
from mmengine.config import Config
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, HOOKS, MODELS, init_default_scope

CONFIGS = {
    path: block for document in DOCUMENTS for path, block in example_files(document).items() if '_base_' in block
}
# Those that load a model have tests of their own.
SCRIPTS = [
    pytest.param(block, id=f'{name(document)}-{number}')
    for document in DOCUMENTS
    for number, block in enumerate(code_blocks(document, 'python'))
    if re.search('^(from|import) ', block, re.MULTILINE) and not re.search(r'\.(pth|onnx)\b', block)
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The repository's configs with all examples beside them."""
    root = tmp_path_factory.mktemp('examples')
    shutil.copytree(ROOT / 'configs', root / 'configs')
    for path, block in CONFIGS.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text(block)
    return root


@pytest.mark.parametrize('block', SCRIPTS)
def test_scripts_print_what_they_say(block):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, 'document', 'exec'), {'__name__': 'document'})
    comments = re.findall(r'# ?(.+)$', block, re.MULTILINE)
    for line in printed.getvalue().splitlines()[:1]:
        assert line and any(comment.startswith(line) for comment in comments), line
    assert printed.getvalue() or 'print(' not in block


def test_the_neck_of_the_documents_can_be_named():
    """Defined by the scripts above, or here where this test runs alone."""
    (block,) = [b for d in DOCUMENTS for p, b in example_files(d).items() if p == 'my_heads.py']
    if 'CoarsestMap' not in MODELS:
        exec(compile(block, 'document', 'exec'), {'__name__': 'document'})
    assert MODELS.build(dict(type='CoarsestMap', in_channels=4, out_channels=2)).mix.out_channels == 2


@pytest.mark.parametrize('path', CONFIGS)
def test_configs_build(path, folder):
    cfg = Config.fromfile(folder / path)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    assert type(model.backbone).__name__ == 'LaViT'
    with torch.no_grad():
        maps = model.eval().extract_feat(torch.rand(1, 3, 64, 96))
    assert all(torch.isfinite(m).all() for m in maps)
    vanilla = not any('LessAttention' in type(m).__name__ for m in model.modules())
    hooks = [hook['type'] for hook in cfg.custom_hooks]
    assert not (vanilla and 'DiagonalityLossHook' in hooks)
    for hook in cfg.custom_hooks:
        HOOKS.build(hook)


def test_the_config_of_the_readme_is_complete(folder):
    """It is our RetinaNet with LaViT-S, trained as ours."""
    cfg, ours = (Config.fromfile(folder / f) for f in ('my_project/retinanet_lavit.py', 'configs/retinanet_lavit_s.py'))
    init_default_scope('mmdet')
    model, expected = (MODELS.build(c.model) for c in (cfg, ours))
    sizes, expected_sizes = ({n: p.shape for n, p in m.named_parameters()} for m in (model, expected))
    assert sizes == expected_sizes
    assert cfg.auto_scale_lr.base_batch_size == ours.auto_scale_lr.base_batch_size
    assert cfg.train_cfg.max_epochs == ours.train_cfg.max_epochs
    wrapper, expected_wrapper = (build_optim_wrapper(model, c.optim_wrapper) for c in (cfg, ours))
    assert type(wrapper.optimizer) is type(expected_wrapper.optimizer) is torch.optim.AdamW
    decayed = set()
    for group in wrapper.param_groups:
        assert group['lr'] == 1e-4
        decayed |= {id(parameter) for parameter in group['params'] if group['weight_decay']}
    # What scales features: matrices and kernels, but not what is added to the identity.
    assert {n for n, p in model.named_parameters() if id(p) in decayed} == {
        n for n, p in model.named_parameters() if p.dim() > 1 and '.delta_' not in n
    }


def test_classifier_in_one_file(folder):
    cfg = Config.fromfile(folder / 'my_project/lavit_classifier.py')
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model)
    assert model.head(model.extract_feat(torch.rand(1, 3, 64, 64))).shape == (1, 1000)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    decayed = {id(p) for group in wrapper.param_groups if group['weight_decay'] for p in group['params']}
    assert {n for n, p in model.named_parameters() if id(p) in decayed} == {
        n for n, p in model.named_parameters() if p.dim() > 1 and '.delta_' not in n
    }


def test_prediction_of_the_readme(tmp_path, monkeypatch, capsys):
    """It says what mmdet's own function finds."""
    from mmdet.apis import inference_detector, init_detector

    [block] = [b for b in code_blocks(ROOT / 'README.md', 'python') if '.pth' in b]
    config, checkpoint, image = re.findall(r"'(\S+\.(?:py|pth|png))'", block)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    cfg = Config.fromfile(config)
    assert checkpoint == f'work_dirs/demo_detection/epoch_{cfg.train_cfg.max_epochs}.pth'  # where the demo writes it
    init_default_scope('mmdet')
    torch.manual_seed(0)
    state = MODELS.build(cfg.model).state_dict()
    state['roi_head.bbox_head.fc_cls.bias'][3] = 20  # of any box, an untrained model is sure
    (tmp_path / checkpoint).parent.mkdir(parents=True)
    torch.save(dict(state_dict=state, meta=dict(dataset_meta=dict(classes=tuple('0123456789')))), checkpoint)
    write(tmp_path / image, np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8))

    exec(compile(block, 'document', 'exec'), {'__name__': 'document'})
    found = inference_detector(init_detector(cfg, checkpoint, device='cpu'), image).pred_instances
    assert (found.labels == 3).all() and (found.scores > 0.99).all() and len(found) > 8
    printed = capsys.readouterr().out.splitlines()
    assert f'{len(found)} objects: {", ".join(["3 1.00"] * 8)}, ...' in printed


def write_pets(root):
    """Two pictures a split in COCO's format, with categories in another order than the config's classes."""
    for split in ('train', 'val'):
        images, annotations = [], []
        for index in range(2):
            write(root / f'data/pets/{split}/{index}.jpg', np.zeros((60, 80, 3), np.uint8))
            images.append(dict(id=index, file_name=f'{index}.jpg', height=60, width=80))
            box = dict(bbox=[5, 5, 40, 40], area=1600, segmentation=[[5, 5, 45, 5, 45, 45]], iscrowd=0)
            annotations.append(dict(id=index + 1, image_id=index, category_id=index + 1, **box))
        categories = [dict(id=1, name='dog'), dict(id=2, name='cat')]
        content = dict(images=images, annotations=annotations, categories=categories)
        (root / f'data/pets/{split}.json').write_text(json.dumps(content))


def write_roads(root):
    for split in ('train', 'val'):
        write(root / f'data/roads/images/{split}/a.jpg', np.zeros((600, 600, 3), np.uint8))
        mask = np.zeros((600, 600), np.uint8)
        mask[::2] = 1
        write(root / f'data/roads/masks/{split}/a.png', mask)


def write_flowers(root):
    for split in ('train', 'val'):
        for label in 'abcde':
            write(root / f'data/flowers/{split}/{label}/0.jpg', np.zeros((60, 80, 3), np.uint8))


def write(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, picture)[1].tobytes())


def labels_of(scope, sample):
    if scope == 'mmdet':
        return set(sample.gt_instances.labels.tolist())
    return set(sample.gt_sem_seg.data.unique().tolist()) if scope == 'mmseg' else set(sample.gt_label.tolist())


@pytest.mark.parametrize(
    ('path', 'write_data', 'expected'),
    [
        ('configs/mask_rcnn_lavit_s_pets.py', write_pets, {0, 1}),
        ('my_project/retinanet_lavit_pets.py', write_pets, {0, 1}),
        ('configs/upernet_lavit_s_roads.py', write_roads, {0, 1}),
        ('configs/lavit_t_flowers.py', write_flowers, {0, 1, 2, 3, 4}),
    ],
)
def test_data_of_ones_own_is_read(path, write_data, expected, folder, tmp_path, monkeypatch):
    """Every split gives samples with the classes that the heads were made for."""
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(folder / path)
    scope = cfg.get('default_scope', 'mmdet')
    init_default_scope(scope)
    for split in ('train', 'val', 'test'):
        dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
        found = set().union(*(labels_of(scope, dataset[i]['data_samples']) for i in range(len(dataset))))
        assert found == expected, split
    heads = re.findall(r"'num_classes': (\d+)", str(cfg.model.to_dict()))
    assert set(map(int, heads)) == {len(expected)}
    if scope == 'mmdet':
        assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == 'data/pets/val.json'
