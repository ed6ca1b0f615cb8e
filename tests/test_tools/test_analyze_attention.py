"""tools/analysis_tools/analyze_attention.py, as a user starts it."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from small_vit import VIT
from tool_runs import run_tool

from mmlavit.utils.config_files import load_config
from mmlavit.utils.toolbox import load_toolbox

ROOT = Path(__file__).parents[2]
TWIN = ROOT / 'configs/experiments/upernet_vanilla_nano_handwritten.py'
STUDENT = ROOT / 'configs/handwritten/upernet_lavit_nano.py'
PLAIN = """
_base_ = '{base}'
model = dict(backbone=dict(_delete_=True, **{vit}), head=dict(in_channels=32))
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Two images, and random weights of a segmentor, its twin and a classifier with a ViT."""
    root = tmp_path_factory.mktemp('attention')
    (root / 'images').mkdir()
    rng = np.random.default_rng(0)
    for i in range(2):
        cv2.imwrite(str(root / f'images/{i}.png'), rng.integers(0, 256, (96, 128, 3), np.uint8))
    vit = root / 'vit.py'
    vit.write_text(PLAIN.format(base=ROOT / 'configs/handwritten/classify_lavit_nano.py', vit=VIT))
    for path in (TWIN, STUDENT, vit):
        cfg = load_config(str(path))
        load_toolbox(cfg.default_scope)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            torch.save(MODELS.build(cfg.model).state_dict(), root / f'{path.stem}.pth')
    return root


def analyze(monkeypatch, capsys, folder, *args):
    code = run_tool(monkeypatch, 'analysis_tools/analyze_attention.py', *args, '--images', folder / 'images')
    return code, capsys.readouterr()


def test_twin_and_student(folder, monkeypatch, capsys, tmp_path):
    out = tmp_path / 'attention.png'
    compare = ['--compare', STUDENT, folder / f'{STUDENT.stem}.pth', '--out', out]
    code, said = analyze(monkeypatch, capsys, folder, TWIN, folder / f'{TWIN.stem}.pth', '--convert', 5, *compare)
    assert code == 0, said.err
    assert said.out.count('stages.') == 18 and said.out.count('│ less ') == 5
    assert said.out.count('To convert 5 of 5 layers: num_va_layers=[1, 1, 1, 1]') == 1
    assert said.out.count('It has less attention already, so no layers to convert are named') == 1  # the student
    assert cv2.imread(str(out)).shape[2] == 3


def test_all_models_see_the_images_of_the_first(folder, monkeypatch, capsys):
    """Without --images those of its test; the twin's own data is not there."""
    (folder / 'masks').mkdir(exist_ok=True)
    for i in range(2):
        cv2.imwrite(str(folder / f'masks/{i}.png'), np.zeros((96, 128), np.uint8))
    data = dict(data_root=str(folder), data_prefix=dict(img_path='images', seg_map_path='masks'))
    own = folder / 'own.py'
    own.write_text(f"_base_ = '{STUDENT}'\ntest_dataloader = dict(dataset={data})")
    monkeypatch.chdir(folder)
    compare = ['--compare', TWIN, folder / f'{TWIN.stem}.pth']
    code = run_tool(monkeypatch, 'analysis_tools/analyze_attention.py', own, folder / f'{STUDENT.stem}.pth', *compare)
    said = capsys.readouterr()
    assert code == 0, said.err
    assert said.out.count('stages.') == 18


def test_plain_transformer(folder, monkeypatch, capsys):
    code, said = analyze(monkeypatch, capsys, folder, folder / 'vit.py', folder / 'vit.pth', '--num-images', 1)
    assert code == 0, said.err
    assert said.out.count('layers.') == 4 and 'To convert 1 of 3 layers: layers=[' in said.out


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--convert', 6], '--convert must be from 0 to 5'),
        (['--num-images', 0], "--num-images: invalid positive value: '0'"),
        (['--compare', STUDENT, 'nowhere.pth'], 'nowhere.pth does not exist'),
    ],
)
def test_errors(folder, monkeypatch, capsys, options, message):
    code, said = analyze(monkeypatch, capsys, folder, TWIN, folder / f'{TWIN.stem}.pth', *options)
    assert code == 2 and message in said.err
