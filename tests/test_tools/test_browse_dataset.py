"""tools/analysis_tools/browse_dataset.py draws what the pipelines of all three tasks give."""

import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import synthetic
import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from tool_runs import call_tool

from mmlavit.visualization.browse import _take_apart

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs/handwritten'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A folder with a few handwritten pictures under ``data/``."""
    root = tmp_path_factory.mktemp('browse')
    synthetic.write_handwritten(root)
    return root


@pytest.fixture
def browse(data, tmp_path, monkeypatch):
    """Run the script in this process; give the pictures it wrote, by name."""

    def run(name, *args):
        monkeypatch.chdir(data)
        call_tool(monkeypatch, 'analysis_tools/browse_dataset.py', CONFIGS / name, *args, '--out-dir', tmp_path / 'out')
        return {path.name: cv2.imread(str(path)).astype(int) for path in sorted((tmp_path / 'out').glob('*'))}

    return run


def read(path, factor):
    """A picture of the dataset, enlarged as it is drawn."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    smooth = cv2.INTER_CUBIC if image.ndim == 3 else cv2.INTER_NEAREST
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=smooth).astype(int)


def test_detection(browse, data):
    drawn = browse('mask_rcnn_lavit_nano.py', '--number', '3')
    assert list(drawn) == ['000000_000000.png', '000004_000004.png', '000007_000007.png']  # of 8, evenly spread
    annotations = json.loads((data / 'data/handwritten/annotations/train.json').read_text())['annotations']
    for index in (0, 4, 7):
        image = drawn[f'{index:06d}_{index:06d}.png']
        changed = np.abs(image - read(data / f'data/handwritten/images/train/{index:06d}.png', 3)).max(axis=2) > 30
        inside = np.zeros_like(changed)
        for entry in annotations:
            if entry['image_id'] == index:
                x, y, w, h = (3 * value for value in entry['bbox'])
                inside[max(y - 4, 0) : y + h + 4, max(x - 4, 0) : x + w + 4] = True
                # The frame of the box: its four sides lie there.
                assert changed[y : y + h, max(x - 3, 0) : x + 3].any(axis=1).mean() > 0.9
        assert changed[inside].mean() > 0.15
        assert changed[~inside].mean() < 0.02  # a label may stick out


def test_segmentation(browse, data):
    (image,) = browse('upernet_lavit_nano.py', '--split', 'val', '--number', '1').values()
    original = read(data / 'data/handwritten/images/val/000000.png', 3)
    labels = read(data / 'data/handwritten/masks/val/000000.png', 3)
    palette = np.array(Config.fromfile(CONFIGS / 'upernet_lavit_nano.py').metainfo.palette)
    expected = (original + palette[labels][..., ::-1]) / 2
    agree = np.abs(image - expected).max(axis=2) < 8
    for label in np.unique(labels):
        assert agree[labels == label].mean() > 0.6  # the rest is the class's name, and smoothing


@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize('name', ['mask_rcnn_lavit_nano.py', 'upernet_lavit_nano.py'])
def test_annotations_of_the_image_before_it_was_resized(browse, data, name, padded):
    """As in the tests of COCO, ADE20K and YOLOX: the drawing is that of the pipeline that makes nothing larger."""
    drawn = []
    for factor in (1.0, 2.0):
        config = data / f'{factor}_{padded}_{name}'
        config.write_text(
            f"_base_ = '{CONFIGS / name}'\n"
            'steps = [step for step in _base_.val_dataloader.dataset.pipeline if step.type != "Resize"]\n'
            f"steps.insert(1, dict(type='Resize', scale_factor={factor}, keep_ratio=True))\n"
            + "steps.insert(2, dict(type='Pad', size=(600, 700)))\n" * padded
            + 'val_dataloader = dict(dataset=dict(pipeline=steps))\n'
        )
        (image,) = browse(config, '--split', 'val', '--number', '1').values()
        drawn.append(image)
    assert drawn[0].shape == drawn[1].shape
    assert np.abs(drawn[0] - drawn[1]).mean() < 4  # the image was made larger and smaller again
    assert np.abs(drawn[0] - drawn[0].mean((0, 1))).mean() > 12


def test_classification_after_its_pipeline(browse):
    """The crop of the pipeline is what is drawn, with its class; folders of classes are all visited."""
    drawn = browse(
        'classify_lavit_nano.py', '--number', '10', '--cfg-options', 'train_dataloader.dataset.pipeline.1.crop_size=32'
    )
    assert {image.shape for image in drawn.values()} == {(480, 480, 3)}  # 15 times 32
    digits = [name.split('_')[1] for name in drawn]
    assert digits == sorted(digits)
    assert len(set(digits)) >= 9


def test_broken_files(browse, data, tmp_path, capsys):
    """Each ends in one line that names the file."""
    broken = tmp_path / 'broken'
    shutil.copytree(data / 'data/handwritten', broken)
    image, annotations = broken / 'images/train/000000.png', broken / 'annotations/train.json'
    for file, message in ((image, f'error: {image} is cut off'), (annotations, f'error: {annotations} is cut off')):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises(SystemExit) as stopped:
            options = f'train_dataloader.dataset.data_root={broken}/'
            browse('mask_rcnn_lavit_nano.py', '--number', '1', '--cfg-options', options)
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and said.startswith(message) and said.count('\n') == 1


def test_show(browse, monkeypatch):
    shown = []
    monkeypatch.setenv('DISPLAY', ':0')
    monkeypatch.setattr(Visualizer, 'show', lambda self, image, name, wait_time: shown.append((image, name, wait_time)))
    assert browse('classify_lavit_nano.py', '--number', '2', '--show', '--wait-time', '3') == {}
    assert [(name[:6], wait_time) for _, name, wait_time in shown] == [('000000', 3), ('000063', 3)]
    assert shown[0][0].shape == (448, 448, 3)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--show'], '--show needs a screen'),
        (['--number', '0'], '--number 0: expected 1 or more'),
        (['--cfg-options', 'train_dataloader.dataset.data_root=nowhere'], 'missing data: nowhere/train'),
        (['--split', 'val', '--cfg-options', 'val_dataloader=None'], 'the config has no val_dataloader'),
    ],
)
def test_mistakes(args, message, browse, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'platform', 'linux')
    monkeypatch.delenv('DISPLAY', raising=False)
    monkeypatch.delenv('WAYLAND_DISPLAY', raising=False)
    with pytest.raises(SystemExit) as stopped:
        browse('classify_lavit_nano.py', *args)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: {message}') and error.count('\n') == 1


def test_branches():
    """As mmdet's MultiBranch gives them: one without annotations has no sample of its own."""
    one, two = (BaseDataElement(metainfo=dict(img_path=f'{name}.png')) for name in 'ab')
    images = dict(sup=torch.zeros(3, 4, 5), unsup=torch.ones(3, 6, 7), other=None)
    item = dict(inputs=images, data_samples=dict(sup=one, unsup=two, other=None))
    assert [*_take_apart(item)] == [('sup', images['sup'], one), ('unsup', images['unsup'], two)]
    assert [*_take_apart(dict(inputs=images['sup'], data_samples=one))] == [('', images['sup'], one)]
