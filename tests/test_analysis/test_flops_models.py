"""Multiply-adds of whole models, and tools/analysis_tools/get_flops.py."""

import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from tool_runs import run_tool
from torch import nn

from mmlavit.analysis.breakdown import break_down, part_of
from mmlavit.analysis.complexity import model_complexity
from mmlavit.errors import UserError
from mmlavit.utils.config_files import load_config

ROOT = Path(__file__).parents[2]


def count(name, shape):
    return model_complexity(load_config(name), shape)


def test_retinanet():
    """Neck and head at 800x1344 by hand: levels of stride 8 to 128."""
    complexity, notes = count(str(ROOT / 'configs/retinanet_lavit_s.py'), (800, 1344))
    assert notes == []  # nothing was computed
    levels = [100 * 168, 50 * 84, 25 * 42, 13 * 21, 7 * 11]
    neck = sum(n * (c * 256 + 256 * 256 * 9) for n, c in zip(levels, (128, 320, 512)))
    neck += levels[3] * 512 * 256 * 9 + levels[4] * 256 * 256 * 9
    head = sum(levels) * 9 * 256 * (8 * 256 + 9 * 80 + 9 * 4)
    rows = {row.name: row.total for row in break_down(complexity.cells)}
    assert rows['neck: convolutions'] == neck
    assert rows['bbox_head: convolutions'] == head
    backbone = sum(macs for (path, _), macs in complexity.cells.items() if part_of(path) == 'backbone')
    assert complexity.macs == sum(rows.values()) == backbone + neck + head


@pytest.mark.parametrize(
    ('name', 'stages', 'masks'),
    [
        ('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', 1, 100),
        ('mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py', 3, 100),
        ('mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py', 3, 0),
    ],
)
def test_regions(name, stages, masks):
    """RoI heads by hand; a cascade's boxes do not depend on the class."""
    complexity, notes = count(name, (64, 64))
    assert ('RoI heads: 1000 proposals, 100 masks,' if masks else 'RoI heads: 1000 proposals, the most') in notes[0]
    assert len(notes) == 1
    boxes = 256 * 7 * 7 * 1024 + 1024 * 1024 + 1024 * (81 + 4 * (80 if stages == 1 else 1))
    mask = 4 * 14 * 14 * 256 * 256 * 9 + 14 * 14 * 256 * 256 * 4 + 28 * 28 * 256 * 80
    rows = {row.name: row.total for row in break_down(complexity.cells)}
    assert rows['roi_head.bbox_head: linear layers'] == 1000 * stages * boxes
    assert rows.get('roi_head.mask_head: convolutions', 0) == masks * stages * mask


def test_regions_of_a_shared_head():
    """The last stage of ResNet-50 on 1000 regions of 14x14, which it halves at once."""
    complexity, notes = count('mmdet::faster_rcnn/faster-rcnn_r50-caffe-c4_ms-1x_coco.py', (64, 64))
    assert len(notes) == 1
    narrow, wide = 512 * 512 * 9 + 512 * 2048, 2048 * 512
    stage = 7 * 7 * (1024 * 512 + narrow + 1024 * 2048 + 2 * (wide + narrow))
    rows = {row.name: row.total for row in break_down(complexity.cells)}
    assert rows['roi_head.shared_head: convolutions'] == 1000 * stage


@pytest.mark.parametrize(
    ('name', 'shape', 'published', 'params'),
    [
        # In their papers, at three digits or two.
        ('mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py', (512, 2048), 945, 60),
        ('mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py', (512, 2048), 939, 60),
        ('mmpretrain::deit/deit-small_4xb256_in1k.py', (224, 224), 4.6, 22),
        ('mmpretrain::resnet/resnet50_8xb32_in1k.py', (224, 224), 4.1, 25.6),
    ],
)
def test_published_figures_of_others(name, shape, published, params):
    complexity, _ = count(name, shape)
    assert complexity.macs / 1e9 == pytest.approx(published, rel=0.002 if published > 100 else 0.01)
    assert complexity.params / 1e6 == pytest.approx(params, rel=0.01)


@MODELS.register_module(name='FlopsTestModel', force=True)
class Asking(nn.Module):
    """A model that a device without numbers cannot run: it looks at one, and calls an operator in C++."""

    def __init__(self, fails=None, writes=None):
        super().__init__()
        from mmcv.ops import RoIAlign

        writes.pop('seen')  # some detectors change their config
        self.fails = fails
        self.conv = nn.Conv2d(3, 4, 1)
        self.align = RoIAlign(2)

    def forward(self, x, samples, mode):
        x = self.align(self.conv(x), x.new_tensor([[0, 0, 0, 2, 2]]))
        if x.sum().item() > 1e9 or self.fails:
            raise self.fails
        return x


def asking(**kwargs):
    model = dict(type='mmengine.FlopsTestModel', writes=dict(seen=1), **kwargs)
    return Config(dict(default_scope='mmpretrain', model=model), cfg_text='no file', filename='asking.py')


def test_models_that_have_to_be_computed():
    cfg = asking()
    complexity, notes = model_complexity(cfg, (5, 6))
    assert complexity.cells == {('conv', 'convolutions'): 30 * 12}
    assert notes[0] == 'Not counted: the operators of mmcv in RoIAlign.'
    assert notes[1].startswith('The model was run')
    assert cfg.model.writes == dict(seen=1)


def test_nothing_is_downloaded(monkeypatch):
    timm, asked = pytest.importorskip('timm'), []
    monkeypatch.setattr(timm, 'create_model', lambda *args, pretrained, **kwargs: asked.append(pretrained))
    backbone = dict(type='TIMMBackbone', model_name='vit_tiny_patch16_224', pretrained=True, num_classes=0)
    head = dict(type='LinearClsHead', num_classes=2, in_channels=192)
    model = dict(type='ImageClassifier', backbone=backbone, head=head)
    cfg = Config(dict(default_scope='mmpretrain', model=model), cfg_text='no file', filename='timm.py')
    with pytest.raises(UserError, match='timm.py cannot be counted'):  # of the model that is not there
        model_complexity(cfg, (224, 224))
    assert asked and not any(asked)


def test_operators_that_are_not_there():
    cfg = asking(fails=UserError('some_op is none of the ops'))
    with pytest.raises(UserError, match='asking.py cannot be counted: some_op is none of the ops$'):
        model_complexity(cfg, (5, 6))


def test_models_that_cannot_run():
    message = 'asking.py cannot be counted at 5x6: TypeError: no tensor mode'
    with pytest.raises(UserError, match=message):
        model_complexity(asking(fails=TypeError('no tensor\nmode')), (5, 6))


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        (dict(default_scope='mmdet'), 'has no model'),
        (dict(model=dict(type='LaViT')), 'has default_scope=None, expected one of mmdet, mmseg, mmpretrain'),
    ],
)
def test_configs_of_nothing_known(cfg, message):
    with pytest.raises(UserError, match=message):
        model_complexity(Config(cfg), (32, 32))


def get_flops(monkeypatch, capsys, *args):
    """Run the tool; return its exit code, lines and complaint."""
    monkeypatch.chdir(ROOT)
    code = run_tool(monkeypatch, 'analysis_tools/get_flops.py', *args)
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


def numbers(lines):
    """{first column: the others} of a table's rows."""
    cells = [re.split(r'\s{2,}', line.strip()) for line in lines]
    return {row[0]: row[1:] for row in cells if len(row) > 1 and row[-1][0].isdigit()}


def test_tool_breaks_down(monkeypatch, capsys):
    """All rows and stages add up, and 'pool' reaches the model."""
    config = 'configs/mask_rcnn_lavit_s.py'
    options = ('--shape', '256', '320', '--cfg-options', 'model.backbone.key_reduction=pool')
    code, lines, _ = get_flops(monkeypatch, capsys, config, '--breakdown', *options)
    assert code == 0
    text = '\n'.join(lines)
    assert 'one image of 256x320' in text
    assert '1000 proposals' in text
    first, second = text.split('Other work')
    for part, last in ((first, 'roi_head.mask_head: convolutions'), (second, 'backbone: norms')):
        rows = numbers(part.splitlines()[1:])
        whole = rows.pop('model')
        assert last in rows
        sums = Counter()
        for row in rows.values():
            *stages, total, share = (float(number.rstrip('%').replace(',', '')) for number in row)
            assert len(stages) in (0, 4)
            assert not stages or sum(stages) == total
            for index, value in enumerate([*stages] or [0] * 4):
                sums[index] += value
            sums['total'] += total
            sums['share'] += share
        *stages, total, share = (float(number.rstrip('%').replace(',', '')) for number in whole)
        assert stages == [sums[index] for index in range(4)]
        assert total == sums['total']
        assert sums['share'] == pytest.approx(share, abs=1)
    expected = dict(numbers(first.splitlines()))['attention products'][0]
    # 64 x 80 queries, 3 layers; a vanilla one has two products.
    assert expected == f'{5120 * 49 * 64 * 4:,}'


def test_tool_compares(monkeypatch, capsys):
    name = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'
    code, lines, _ = get_flops(monkeypatch, capsys, 'configs/lavit_s_in1k.py', '--compare', name)
    assert code == 0
    rows = numbers(lines)
    assert rows['configs/lavit_s_in1k.py'] == ['22.39', '1.00', '3.275', '0.001', '3.276', '1.00']
    assert rows[name] == ['25.56', '1.14', '4.087', '0.002', '4.089', '1.25']


def test_tool_compares_with_itself(monkeypatch, capsys):
    """A changed config beside the unchanged one."""
    name = 'configs/lavit_s_in1k.py'
    options = ['--cfg-options', 'model.backbone.num_va_layers=[3,4,6,3]', 'model.backbone.attention_residual=False']
    code, lines, _ = get_flops(monkeypatch, capsys, name, '--compare', name, *options)
    assert code == 0
    rows = numbers(lines)
    assert lines[0].startswith(f'{name}, changed, one image of 224x224')
    assert rows[f'{name}, changed'][-1] == '1.00' and rows[name][-1] != '1.00'


def test_gray_images(monkeypatch, capsys):
    """The first convolution sees one channel of three."""
    option = 'model.backbone.in_channels=1'
    code, lines, _ = get_flops(monkeypatch, capsys, 'configs/lavit_s_in1k.py', '--breakdown', '--cfg-options', option)
    assert code == 0
    row = next(line for line in lines if 'patch embed' in line.lower())
    assert int(row.split()[-6].replace(',', '')) == 56 * 56 * 64 * 4 * 4
    option = 'model.backbone.backbone.in_channels=1'  # of the transformer inside
    code, _, _ = get_flops(monkeypatch, capsys, 'configs/experiments/vit_small_less_in30.py', '--cfg-options', option)
    assert code == 0


def test_semantic_head():
    """Of a panoptic detector: four levels of convolutions, upsampled in between, and one for the classes."""
    complexity, _ = count('mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py', (128, 128))
    sides = [32, 16, 8, 4]
    macs = 32 * 32 * 128 * 54 + 32 * 32 * 256 * 128 * 9  # classes; level 0
    for level in (1, 2, 3):  # each convolution is followed by an enlargement to twice the side
        side = sides[level]
        macs += sum((side * 2**i) ** 2 * (256 if i == 0 else 128) * 128 * 9 for i in range(level))
    rows = {row.name: row.total for row in break_down(complexity.cells)}
    assert rows['semantic_head: convolutions'] == macs


def test_extractor_that_computes():
    """GRoIE has convolutions and attention of its own, so regions are found by running the model."""
    complexity, notes = count('mmdet::groie/faste-rcnn_r50_fpn_groie_1x_coco.py', (64, 64))
    assert any('The model was run' in note for note in notes)
    assert any(path.startswith('roi_head.bbox_roi_extractor') for path, _ in complexity.cells)


def test_tool_sums_up(monkeypatch, capsys):
    code, lines, _ = get_flops(monkeypatch, capsys, 'configs/lavit_t_in1k.py', '--shape', '64')
    assert code == 0
    complexity, _ = count('configs/lavit_t_in1k.py', (64, 64))
    head = 512 * 1000
    assert numbers(lines) == {
        'backbone': [f'{(complexity.macs - head) / 1e9:.3f}'],
        'head': [f'{head / 1e9:.3f}'],
        'model': [f'{complexity.macs / 1e9:.3f}'],
    }
    assert lines[0] == 'configs/lavit_t_in1k.py, one image of 64x64, 10.87 M parameters'
    assert re.search(r'norms \d+.\d M, softmax \d+.\d M, activations \d+.\d M$', lines[-1])


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['configs/none.py'], 'config configs/none.py does not exist'),
        (
            ['mmdet::retinanet/retinanet_r50_fpn_2y_coco.py'],
            'mmdet has no config .*; close are mmdet::retinanet/retina',
        ),
        (['mmfoo::a.py'], 'mmfoo::a.py: expected mmdet::FILE, mmseg::FILE, mmpretrain::FILE or the path of a config'),
        (['configs/lavit_t_in1k.py', '--compare', 'configs/none.py'], 'config configs/none.py does not exist'),
        (['configs/lavit_t_in1k.py', '--compare', '{FAULTY}'], 'LaViT takes no argument .stuff'),
        (['configs/lavit_t_in1k.py', '--cfg-options', 'model.backbone.arc=b'], 'model.backbone'),
        (['configs/lavit_t_in1k.py', '--cfg-options', 'model.backbone.stuff=1'], 'LaViT takes no argument .stuff'),
        (['configs/lavit_t_in1k.py', '--cfg-options', 'model.backbone.arch=z'], 'arch must be one of nano, '),
        (['configs/_base_/schedules/adamw.py'], 'has no model'),
        (['mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py', '--shape', '3'], 'cannot be counted at 3x3'),
    ],
)
def test_tool_complains_in_one_line(monkeypatch, capsys, tmp_path, args, message):
    faulty = tmp_path / 'faulty.py'
    faulty.write_text(f"_base_ = '{Path('configs/lavit_t_in1k.py').resolve()}'\nmodel = dict(backbone=dict(stuff=1))")
    code, _, err = get_flops(monkeypatch, capsys, *(arg.format(FAULTY=faulty) for arg in args))
    assert code == 2
    assert re.match(f'error: .*{message}.*\n$', err)


def test_tool_misses_imports(monkeypatch, capsys, tmp_path):
    (tmp_path / 'a.py').write_text("custom_imports = dict(imports=['not_there'], allow_failed_imports=False)")
    code, _, err = get_flops(monkeypatch, capsys, str(tmp_path / 'a.py'))
    assert code == 2
    assert re.match(r'error: .*a\.py cannot be read: .*not_there.*\n$', err)


@pytest.mark.parametrize('shape', [['0'], ['32', '-1'], ['1', '2', '3'], ['wide']])
def test_tool_refuses_shapes(monkeypatch, capsys, shape):
    code, _, err = get_flops(monkeypatch, capsys, 'configs/lavit_t_in1k.py', '--shape', *shape)
    assert code == 2
    assert '--shape' in err


def test_nothing_is_kept_on_meta():
    """A count at a large size must not leave a matrix without numbers for the next run."""
    count(str(ROOT / 'configs/lavit_t_in1k.py'), (256, 320))
    from mmlavit import LaViT

    assert all(torch.isfinite(x).all() for x in LaViT('tiny').eval()(torch.zeros(1, 3, 256, 320)))
