"""tools/distill.py, as a user starts it."""

import os
from pathlib import Path

import cv2
import numpy as np
import payload
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from small_vit import VIT
from tool_runs import run_tool

from mmlavit.apis.distill import distillation_config, keep_options
from mmlavit.datasets.unlabelled import UnlabelledImages, remove_labels
from mmlavit.errors import UserError
from mmlavit.utils.checkpoint import load_checkpoint
from mmlavit.utils.config_files import load_config
from mmlavit.utils.toolbox import load_toolbox

ROOT = Path(__file__).parents[2]
HANDWRITTEN = ROOT / 'configs/handwritten'
SMALL = ['train_dataloader.batch_size=2', 'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False']
TASKS = {
    'mmdet': ('retinanet_lavit_nano.py', {'loss_blocks', 'loss_maps', 'loss_neck'}),
    'mmseg': ('upernet_lavit_nano.py', {'loss_blocks', 'loss_maps', 'loss_logits'}),
    'mmpretrain': ('classify_lavit_nano.py', {'loss_blocks', 'loss_maps', 'loss_logits'}),
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Six images in two folders, and something else."""
    root = tmp_path_factory.mktemp('distill')
    rng = np.random.default_rng(0)
    for i in range(6):
        path = root / 'images' / 'ab'[i % 2] / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (160, 160, 3), np.uint8))
    (root / 'images/labels.json').write_text('{}')
    return root


def write_teacher(root, config):
    """The vanilla twin of a config's model with random weights: its config and checkpoint."""
    path = root / f'twin_{config}'
    path.write_text(
        f"_base_ = '{HANDWRITTEN / config}'\n"
        'model = dict(backbone=dict(num_va_layers=(2, 2, 3, 2), attention_residual=False))\n'
    )
    cfg = Config.fromfile(path)
    load_toolbox(cfg.default_scope)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    checkpoint = root / f'twin_{config}.pth'
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    return path, checkpoint


def distill(monkeypatch, capfd, *args):
    code = run_tool(monkeypatch, 'distill.py', *args)
    return code, capfd.readouterr()


def distill_once(monkeypatch, capfd, folder, student, teacher, checkpoint, *options):
    """One iteration."""
    command = [
        student,
        teacher,
        checkpoint,
        '--images',
        folder / 'images',
        '--work-dir',
        folder / f'out_{student.stem}',
    ]
    return distill(monkeypatch, capfd, *command, '--iters', 1, '--cfg-options', *SMALL, *options)


@pytest.mark.parametrize('scope', TASKS)
def test_checkpoints_are_the_students(folder, monkeypatch, capfd, scope):
    """Layers alone, then all; stopped and continued."""
    config, losses = TASKS[scope]
    teacher, checkpoint = write_teacher(folder, config)
    work_dir = folder / f'out_{scope}'
    command = [HANDWRITTEN / config, teacher, checkpoint, '--images', folder / 'images', '--work-dir', work_dir]
    options = ['--layerwise-iters', 2, '--fit-images', 8, '--cfg-options', *SMALL, 'default_hooks.logger.interval=1']
    options.append('default_hooks.checkpoint.max_keep_ckpts=-1')
    code, said = distill(monkeypatch, capfd, *command, '--iters', 4, *options)
    assert code == 0, said.err
    log = [line for line in said.out.splitlines() if 'Iter(train)' in line]
    assert ['loss_attention' in line for line in log] == [True, True, False, False]
    assert all(f'{name}:' in log[-1] for name in losses)
    assert not any(name in line for line in log for name in ('loss_cls', 'loss_diag'))
    assert 'Scores of stages.2.blocks.2: relative error' in said.out

    with DefaultScope.overwrite_default_scope(scope):
        student = MODELS.build(Config.fromfile(HANDWRITTEN / config).model)
    start, end = (load_checkpoint(str(work_dir / name))['state_dict'] for name in ('start.pth', 'iter_4.pth'))
    for state in (start, end):
        student.load_state_dict(state, strict=True)
    taught = load_checkpoint(str(checkpoint))['state_dict']
    assert torch.equal(
        start['backbone.stages.0.patch_embed.proj.weight'], taught['backbone.stages.0.patch_embed.proj.weight']
    )
    moved = 'backbone.stages.0.blocks.1.attn.delta_theta'
    assert start[moved].any() and not torch.equal(start[moved], end[moved])

    if scope != 'mmseg':  # once is enough
        return
    for checkpoint in (work_dir / 'iter_3.pth', work_dir / 'iter_4.pth'):
        checkpoint.unlink()
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'iter_2.pth'))
    code, said = distill(monkeypatch, capfd, *command, '--iters', 4, '--resume', *options)
    assert code == 0, said.err
    assert 'Copied from the teacher' not in said.out
    assert [line.split('Iter(train) [')[1][:3] for line in said.out.splitlines() if 'Iter(train) [' in line] == [
        '3/4',
        '4/4',
    ]
    assert (work_dir / 'iter_4.pth').is_file()
    # The learning rate has come to its end, and more iterations would change nothing.
    code, said = distill(monkeypatch, capfd, *command, '--iters', 6, '--resume', *options)
    assert code == 2 and 'ends after 4 iterations, the config one that ends after 6: resume with as many' in said.err


def test_a_student_of_fewer_maps(folder, monkeypatch, capfd):
    """The teacher's neck still gets all of its own."""
    teacher, checkpoint = write_teacher(folder, 'retinanet_lavit_nano.py')
    student = folder / 'fewer_maps.py'
    student.write_text(
        f"_base_ = '{HANDWRITTEN / 'retinanet_lavit_nano.py'}'\n"
        'model = dict(backbone=dict(out_indices=(1, 2, 3)), neck=dict(in_channels=[64, 128, 192], start_level=0))\n'
    )
    code, said = distill_once(monkeypatch, capfd, folder, student, teacher, checkpoint)
    assert code == 0, said.err
    assert 'Compared with the teacher: blocks, maps, neck' in said.out


def test_crops_of_several_sizes(folder, monkeypatch, capfd):
    """As of ADE20K: a crop of an image that was made small is smaller. The transforms are fitted to such, too."""
    teacher, checkpoint = write_teacher(folder, 'upernet_lavit_nano.py')
    student = folder / 'crops.py'
    student.write_text(
        f"_base_ = '{HANDWRITTEN / 'upernet_lavit_nano.py'}'\n"
        "steps = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),\n"
        "         dict(type='RandomResize', scale=(160, 160), ratio_range=(0.4, 1.2), keep_ratio=True),\n"
        "         dict(type='RandomCrop', crop_size=(128, 128), cat_max_ratio=0.75), dict(type='PackSegInputs')]\n"
        'train_dataloader = dict(dataset=dict(pipeline=steps))\n'
        'model = dict(data_preprocessor=dict(size=(128, 128)))\n'
    )
    code, said = distill_once(monkeypatch, capfd, folder, student, teacher, checkpoint, '--fit-images', 8)
    assert code == 0, said.err
    assert 'Scores of stages.2.blocks.2: relative error' in said.out


def test_a_start_of_the_students_own(folder, monkeypatch, capfd):
    teacher, checkpoint = write_teacher(folder, 'classify_lavit_nano.py')
    student = HANDWRITTEN / 'classify_lavit_nano.py'
    code, said = distill_once(monkeypatch, capfd, folder, student, teacher, checkpoint, f'load_from={checkpoint}')
    assert code == 2 and f'load_from is {checkpoint}, but a student starts from its teacher' in said.err


def test_a_teacher_of_another_kind(folder, monkeypatch, capfd):
    """A ResNet detector teaches the maps of its neck; neck and head are copied as far as they fit."""
    student = HANDWRITTEN / 'retinanet_lavit_nano.py'
    path = folder / 'resnet.py'
    path.write_text(
        f"_base_ = '{student}'\n"
        "model = dict(backbone=dict(_delete_=True, type='ResNet', depth=18, out_indices=(0, 1, 2, 3)),\n"
        '             neck=dict(in_channels=[64, 128, 256, 512]))\n'
    )
    cfg = load_config(str(path))
    load_toolbox('mmdet')
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), folder / 'resnet.pth')
    code, said = distill_once(monkeypatch, capfd, folder, student, path, folder / 'resnet.pth')
    assert code == 0, said.err
    assert 'Copied from the teacher: 0 tensors of the backbone' in said.out
    assert 'Compared with the teacher: neck' in said.out


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda args: args.update(images='nowhere'), '--images nowhere does not exist'),
        (lambda args: args.update(images='empty'), 'has no images'),
        (lambda args: args.update(checkpoint='none.pth'), 'none.pth does not exist'),
        (lambda args: args.update(checkpoint='other.pth'), 'other.pth is not a checkpoint of this config: of '),
        (lambda args: args.update(iters=0), 'expected 0 <= layerwise_iters <= iters'),
    ],
)
def test_mistakes(folder, monkeypatch, capfd, change, message):
    monkeypatch.chdir(folder)
    teacher, checkpoint = write_teacher(folder, 'classify_lavit_nano.py')
    os.makedirs('empty', exist_ok=True)
    torch.save(dict(state_dict={'weight': torch.zeros(1)}), 'other.pth')
    args = dict(checkpoint=checkpoint, images='images', iters=1)
    change(args)
    student = HANDWRITTEN / 'classify_lavit_nano.py'
    command = [student, teacher, args['checkpoint'], '--images', args['images'], '--iters', args['iters']]
    code, said = distill(monkeypatch, capfd, *command, '--work-dir', 'wrong', '--cfg-options', *SMALL)
    assert code == 2
    lines = [line for line in said.err.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1 and message in lines[0]
    assert 'Traceback' not in said.err


def test_a_teacher_that_runs_code_is_refused(folder, monkeypatch, capfd, tmp_path):
    teacher, checkpoint = write_teacher(folder, 'classify_lavit_nano.py')
    harmful, trace = tmp_path / 'harmful.pth', tmp_path / 'trace'
    payload.write(harmful, load_checkpoint(str(checkpoint)), trace)
    student = HANDWRITTEN / 'classify_lavit_nano.py'
    command = [student, teacher, harmful, '--images', folder / 'images', '--iters', 1, '--work-dir', tmp_path]
    code, said = distill(monkeypatch, capfd, *command, '--cfg-options', *SMALL)
    assert code == 2 and 'was not loaded: it asks for posix.system' in said.err and not trace.exists()
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '')  # so that what the option sets is undone
    code, said = distill(monkeypatch, capfd, *command, '--trust-checkpoint', '--cfg-options', *SMALL)
    assert code == 0 and trace.exists()


def test_only_a_lavit_can_be_the_student():
    cfg = Config(dict(model=dict(type='RetinaNet', backbone=dict(type='ResNet'))))
    with pytest.raises(UserError, match='expected LaViT or WithLessAttention'):
        distillation_config(cfg, cfg, '', '', iters=1)


def test_images_are_found_in_all_folders(folder):
    data = UnlabelledImages(str(folder / 'images'), [])
    assert [os.path.relpath(data[i]['img_path'], folder) for i in range(len(data))] == [
        'images/a/0.png', 'images/a/2.png', 'images/a/4.png', 'images/b/1.png', 'images/b/3.png', 'images/b/5.png'
    ]  # fmt: skip


@pytest.mark.parametrize(
    'config', ['mask_rcnn_lavit_s_3x.py', 'retinanet_lavit_s.py', 'upernet_lavit_s.py', 'lavit_s_in1k.py']
)
def test_pipelines_work_without_labels(folder, config):
    """Those of COCO with several scales and crops, of ADE20K, of ImageNet."""
    cfg = load_config(str(ROOT / 'configs' / config))
    load_toolbox(cfg.default_scope)
    dataset = cfg.train_dataloader.dataset
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        data = UnlabelledImages(str(folder / 'images'), remove_labels(dataset.pipeline))
        for i in range(4):  # some of the transforms are random
            sample = data[i]
    assert sample['inputs'].shape[0] == 3


def test_choices_without_labels():
    """Transforms inside of others lose their labels, too; choices stay as many, each with its probability."""
    crop = dict(type='RandomCrop', crop_size=(8, 8), cat_max_ratio=0.75)
    annotations, flip = dict(type='LoadAnnotations'), dict(type='RandomFlip', prob=0.5)
    pipeline = [
        dict(type='RandomChoice', transforms=[[annotations, crop], flip, annotations], prob=[0.2, 0.3, 0.5]),
        dict(type='RandomApply', transforms=[annotations, crop], prob=0.1),
        dict(type='RandomApply', transforms=crop),
    ]
    left = dict(type='RandomCrop', crop_size=(8, 8))
    assert remove_labels(pipeline) == [
        dict(type='RandomChoice', transforms=[[left], [flip], []], prob=[0.2, 0.3, 0.5]),
        dict(type='RandomApply', transforms=[left], prob=0.1),
        dict(type='RandomApply', transforms=[left]),
    ]
    with pytest.raises(UserError, match='MixUp in the training pipeline'):
        remove_labels([dict(type='RandomChoice', transforms=[[flip], dict(type='MixUp')])])


def test_whole_batches_are_refused(folder, monkeypatch, capfd):
    teacher, checkpoint = write_teacher(folder, 'classify_lavit_nano.py')
    student = ROOT / 'configs/experiments/lavit_nano_in275.py'
    code, said = distill_once(monkeypatch, capfd, folder, student, teacher, checkpoint)
    assert code == 2 and "error: DecodedImages of the student's train_dataloader gives whole batches" in said.err


@pytest.mark.parametrize('arguments', [dict(fit_images=32), dict(layerwise_iters=1)])
def test_controls_have_nothing_to_fit(folder, arguments):
    _, checkpoint = write_teacher(folder, 'classify_lavit_nano.py')
    student = load_config(str(HANDWRITTEN / 'classify_lavit_nano.py'))
    student.model.backbone.update(type='mmlavit.analysis.controls.LaViTControl', later='none')
    with pytest.raises(UserError, match='LaViTControl, a control, which has no transforms to fit .* leave out --fit'):
        distillation_config(student, student, str(checkpoint), str(folder / 'images'), iters=1, **arguments)


@pytest.mark.parametrize('later', ['fixed', 'uniform', 'none'])
def test_a_control_as_student(folder, monkeypatch, capfd, later):
    teacher, checkpoint = write_teacher(folder, 'classify_lavit_nano.py')
    student = folder / f'control_{later}.py'
    student.write_text(
        f"_base_ = '{HANDWRITTEN / 'classify_lavit_nano.py'}'\n"
        f"model = dict(backbone=dict(type='mmlavit.analysis.controls.LaViTControl', later='{later}'))\n"
    )
    code, said = distill_once(monkeypatch, capfd, folder, student, teacher, checkpoint)
    assert code == 0 and 'Compared with the teacher: blocks, maps, logits' in said.out + said.err


def test_mixing_images_needs_labels():
    with pytest.raises(UserError, match='Mosaic in the training pipeline'):
        remove_labels([dict(type='LoadImageFromFile'), dict(type='mmdet.Mosaic')])


def test_a_data_set_that_mixes_images_needs_labels(folder):
    _, checkpoint = write_teacher(folder, 'classify_lavit_nano.py')
    student = load_config(str(HANDWRITTEN / 'retinanet_lavit_nano.py'))
    inner = student.train_dataloader.dataset
    student.train_dataloader.dataset = dict(
        type='MultiImageMixDataset', dataset=inner, pipeline=[dict(type='Mosaic', img_scale=(64, 64))]
    )
    with pytest.raises(UserError, match='MultiImageMixDataset .* has transforms of its own'):
        distillation_config(student, student, str(checkpoint), str(folder / 'images'), iters=1)


@pytest.mark.parametrize('name', ['fsdp', 'deepspeed'])
def test_strategies(folder, name):
    """What mmengine's Runner does as well is left to it, since it knows of heads without gradients."""
    _, checkpoint = write_teacher(folder, 'classify_lavit_nano.py')
    student = load_config(str(ROOT / f'configs/distributed/mask_rcnn_lavit_s_{name}.py'))
    with pytest.raises(UserError, match='has strategy .*, which hands out parts of the weights'):
        distillation_config(student, student, str(checkpoint), str(folder / 'images'), iters=1)
    student.strategy = dict(type='DDPStrategy')
    cfg = distillation_config(student, student, str(checkpoint), str(folder / 'images'), iters=1)
    assert 'runner_type' not in cfg and 'strategy' not in cfg and cfg.find_unused_parameters
    student.strategy.sync_bn = 'torch'
    with pytest.raises(UserError, match='strategy has sync_bn; distillation uses'):
        distillation_config(student, student, str(checkpoint), str(folder / 'images'), iters=1)


def test_names_of_classes(folder, tmp_path):
    """Those of the student's dataset, else of the teacher's checkpoint."""
    for name, known in (('retinanet_lavit_nano.py', True), ('classify_lavit_nano.py', False)):
        _, checkpoint = write_teacher(folder, name)
        weights = torch.load(checkpoint)
        torch.save(dict(weights, meta=dict(dataset_meta=dict(classes=list('abcdefghij')))), tmp_path / 'teacher.pth')
        student = load_config(str(HANDWRITTEN / name))
        cfg = distillation_config(student, student, str(tmp_path / 'teacher.pth'), str(folder / 'images'), iters=1)
        dataset = UnlabelledImages(
            **{key: cfg.train_dataloader.dataset[key] for key in ('data_root', 'metainfo')}, pipeline=[]
        )
        expected = student.train_dataloader.dataset.metainfo.classes if known else list('abcdefghij')
        assert list(dataset.metainfo['classes']) == list(expected)


def test_names_that_a_dataset_has_by_itself(folder):
    _, checkpoint = write_teacher(folder, 'retinanet_lavit_nano.py')
    student = load_config(str(ROOT / 'configs/retinanet_lavit_t.py'))
    cfg = distillation_config(student, student, str(checkpoint), str(folder / 'images'), iters=1)
    assert len(cfg.train_dataloader.dataset.metainfo.classes) == 80


def test_batch_augmentation_of_mmpretrain(folder):
    _, checkpoint = write_teacher(folder, 'classify_lavit_nano.py')
    student = load_config(str(HANDWRITTEN / 'classify_lavit_nano.py'))
    augments = dict(augments=[dict(type='Mixup', alpha=0.8)])
    student.model.data_preprocessor.batch_augments = augments
    cfg = distillation_config(student, student, str(checkpoint), str(folder / 'images'), iters=1)
    assert cfg.model.data_preprocessor.batch_augments == augments


def test_masks_are_not_padded(folder):
    _, checkpoint = write_teacher(folder, 'retinanet_lavit_nano.py')
    student = load_config(str(HANDWRITTEN / 'retinanet_lavit_nano.py'))
    student.model.data_preprocessor.batch_augments = [dict(type='BatchFixedSizePad', size=(64, 64), pad_mask=True)]
    cfg = distillation_config(student, student, str(checkpoint), str(folder / 'images'), iters=1)
    assert cfg.model.data_preprocessor.batch_augments == [dict(type='BatchFixedSizePad', size=(64, 64), pad_mask=False)]


def test_options_reach_what_the_tool_sets(folder):
    _, checkpoint = write_teacher(folder, 'classify_lavit_nano.py')
    student = load_config(str(HANDWRITTEN / 'classify_lavit_nano.py'))
    cfg = distillation_config(student, student, str(checkpoint), str(folder / 'images'), iters=100)
    options = {'default_hooks.checkpoint.interval': 7, 'param_scheduler.1.eta_min': 1e-6, 'model.backbone.arch': 'tiny'}
    kept = keep_options(cfg, options)
    assert (cfg.default_hooks.checkpoint.interval, kept.default_hooks.checkpoint.interval) == (10, 7)
    assert kept.param_scheduler[1].eta_min == 1e-6
    assert kept.model == cfg.model  # merged before, into the student
    with pytest.raises(UserError, match='val_dataloader.batch_size: distillation has no validation'):
        keep_options(cfg, {'val_dataloader.batch_size': 2})
    for key in ('sampler.shuffle', 'batch_sampler.type', 'dataset.data_root'):
        with pytest.raises(UserError, match='reads all images of --images in random order'):
            keep_options(cfg, {f'train_dataloader.{key}': 1})
    assert keep_options(cfg, {'find_unused_parameters': False}).find_unused_parameters is False
    keep_options(cfg, {'train_dataloader.dataset.pipeline.0.type': 'LoadImageFromFile'})
    with pytest.raises(UserError, match='checkpoint has no|default_hooks.checkpoints'):
        keep_options(cfg, {'default_hooks.checkpoints.interval': 2})


PLAIN = """
_base_ = '{base}'
model = dict(backbone=dict(_delete_=True, **{backbone}), head=dict(in_channels=32))
custom_hooks = []
"""


def test_a_plain_transformer(folder, monkeypatch, capfd):
    """Its own copy with less attention as student."""
    base = HANDWRITTEN / 'classify_lavit_nano.py'
    teacher, student = folder / 'vit.py', folder / 'less_vit.py'
    teacher.write_text(PLAIN.format(base=base, backbone=VIT))
    less = dict(type='WithLessAttention', backbone=VIT, layers=[2, 3])
    student.write_text(PLAIN.format(base=base, backbone=less))
    cfg = load_config(str(teacher))
    load_toolbox('mmpretrain')
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model)
    torch.save(dict(state_dict=model.state_dict()), folder / 'vit.pth')
    work_dir = folder / 'out_vit'
    command = [student, teacher, folder / 'vit.pth', '--images', folder / 'images', '--work-dir', work_dir]
    options = ['--fit-images', 8, '--cfg-options', *SMALL, 'default_hooks.logger.interval=1']
    code, said = distill(monkeypatch, capfd, *command, '--iters', 3, *options)
    assert code == 0, said.err
    assert 'Compared with the teacher: blocks, maps, logits' in said.out + said.err
    assert 'Scores of backbone.layers.2: relative error' in said.out + said.err
    start, end = (load_checkpoint(str(work_dir / name))['state_dict'] for name in ('start.pth', 'iter_3.pth'))
    for name, value in model.state_dict().items():
        own = name.replace('backbone.', 'backbone.backbone.')
        if '.attn.qkv.' in name and name.split('.')[2] in '23':
            continue  # values, whose heads may be in another order
        if '.attn.proj.weight' in name and name.split('.')[2] in '23':
            continue
        assert torch.equal(start[own], value), name
    assert not torch.equal(
        start['backbone.backbone.layers.2.attn.delta_theta'], end['backbone.backbone.layers.2.attn.delta_theta']
    )
    code, said = distill(monkeypatch, capfd, *command, '--iters', 3, '--layerwise-iters', 1, *options)
    assert code == 2 and 'layerwise_iters needs a LaViT' in said.err
