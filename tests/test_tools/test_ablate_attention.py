"""tools/analysis_tools/ablate_attention.py, as a user starts it."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from shell_commands import load
from tool_runs import run_tool

from mmlavit.analysis.ablation import AblationHook
from mmlavit.utils.config_files import load_config
from mmlavit.utils.toolbox import load_toolbox

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs/handwritten/classify_lavit_nano.py'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Images of ten classes, and weights whose transforms and residuals decide what they are."""
    root = tmp_path_factory.mktemp('ablation')
    rng = np.random.default_rng(0)
    for label in range(10):
        (root / f'images/{label}').mkdir(parents=True)
        for i in range(4):
            cv2.imwrite(str(root / f'images/{label}/{i}.png'), rng.integers(0, 256, (64, 64, 3), np.uint8))
    cfg = load_config(str(CONFIG))
    load_toolbox('mmpretrain')
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    torch.save(model.state_dict(), root / 'weights.pth')
    return root


def ablate(monkeypatch, capsys, folder, work_dir, *args, options=()):
    command = [CONFIG, folder / 'weights.pth', '--work-dir', work_dir, *args, '--cfg-options']
    data = ['test_dataloader.dataset.ann_file=', 'test_dataloader.num_workers=0']
    data += [f'test_dataloader.dataset.data_root={folder / "images"}', 'test_dataloader.dataset.data_prefix=']
    code = run_tool(monkeypatch, 'analysis_tools/ablate_attention.py', *command, *data, *options)
    return code, capsys.readouterr()


def test_table(folder, monkeypatch, capsys, tmp_path):
    code, said = ablate(monkeypatch, capsys, folder, tmp_path)
    assert code == 0, said.err
    rows = dict(line.strip('│ ').split('│')[:2] for line in said.out.splitlines() if line.startswith('│'))
    rows = {row.strip(): float(value) for row, value in rows.items()}
    assert list(rows) == [
        'whole',
        'without attention residuals',
        'scores of the layer before, untransformed',
        'later layers attend to all keys alike',
        'later layers without attention',
    ]
    assert rows['whole'] != rows['later layers without attention']
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ['whole', 'residual', 'transforms', 'uniform', 'none']
    )


def test_an_image_alone_in_the_last_batch(folder, monkeypatch, capsys, tmp_path):
    """Its scores would be their own mean."""
    code, said = ablate(
        monkeypatch, capsys, folder, tmp_path, '--without', 'content', options=['test_dataloader.batch_size=13']
    )
    assert code == 2 and 'the last of the 40 images would be alone' in said.err


def test_a_model_without_a_backbone_of_its_own(folder, monkeypatch, capsys, tmp_path):
    config = tmp_path / 'teacher.py'
    config.write_text("_base_ = 'mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py'")
    code = run_tool(monkeypatch, 'analysis_tools/ablate_attention.py', config, folder / 'weights.pth')
    assert code == 2 and 'SoftTeacher has no backbone of its own' in capsys.readouterr().err


def test_mistakes(folder, monkeypatch, capsys, tmp_path):
    options = ['--without', 'none', '--metrics', 'accuracy/top9']
    code, said = ablate(monkeypatch, capsys, folder, tmp_path, *options)
    assert code == 2
    assert 'error: the test gives no accuracy/top9; expected some of accuracy/top1' in said.err
    assert [path.name for path in tmp_path.iterdir()] == ['whole']  # it stops after the first test


def test_content(folder, monkeypatch, capsys, tmp_path):
    """Images are shuffled, so that a batch is not of one class, and come in batches of several."""
    orders, change = [], AblationHook.before_test_epoch

    def look(self, runner):
        orders.append(list(runner.test_dataloader.sampler))
        change(self, runner)

    monkeypatch.setattr(AblationHook, 'before_test_epoch', look)
    code, said = ablate(monkeypatch, capsys, folder, tmp_path, '--without', 'content')
    assert code == 0, said.err
    (order,) = orders
    assert order != sorted(order) == list(range(40))
    options = ['test_dataloader.batch_size=1', 'test_dataloader.num_workers=0']
    code, said = ablate(monkeypatch, capsys, folder, tmp_path, '--without', 'none', 'content', options=options)
    assert code == 2 and 'test_dataloader.batch_size is 1; set it to 8 or more' in said.err
    assert len(orders) == 1  # nothing was tested first


def test_metrics_that_are_no_numbers():
    """mmdet has none where nothing was found, and lists of single classes."""
    show = load(ROOT / 'tools/analysis_tools/ablate_attention.py').show
    assert [show(value) for value in (None, 0.123456, [1, 2])] == ['-', '0.1235', '[1, 2]']


def test_layers(folder, monkeypatch, capsys, tmp_path):
    """They are said for a plain transformer alone."""
    code, said = ablate(monkeypatch, capsys, folder, tmp_path, '--layers', '1')
    assert code == 2
    assert 'error: --layers is for plain vision transformers' in said.err
    plain = ROOT / 'configs/experiments/vit_small_in30.py'
    code = run_tool(monkeypatch, 'analysis_tools/ablate_attention.py', plain, 'none.pth')
    assert code == 2
    assert 'error: backbone is VisionTransformer: say with --layers which layers' in capsys.readouterr().err


def test_controls_are_refused(monkeypatch, capsys):
    """What would be taken away is not there."""
    plain = ROOT / 'configs/experiments/vit_small_less_in30.py'
    control = ['model.backbone.type=WithLessAttentionControl', 'model.backbone.later=uniform']
    code = run_tool(monkeypatch, 'analysis_tools/ablate_attention.py', plain, 'none.pth', '--cfg-options', *control)
    assert code == 2
    assert 'error: backbone is WithLessAttentionControl, from whose later layers' in capsys.readouterr().err
