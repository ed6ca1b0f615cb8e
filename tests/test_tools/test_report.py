"""The tools that make pictures of a trained model, as a user starts them."""

import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from tool_runs import run_tool

from mmlavit.analysis import report
from mmlavit.analysis.runs import Run, find_last_checkpoint
from mmlavit.utils.config_files import load_config
from mmlavit.utils.toolbox import load_toolbox

ROOT = Path(__file__).parents[2]
LAVIT = ROOT / 'configs/handwritten/classify_lavit_nano.py'
RUNS = {
    'lavit': 'dict()',
    'twin': 'dict(backbone=dict(num_va_layers=(2, 2, 3, 2), attention_residual=False))',
    'resnet': "dict(backbone=dict(_delete_=True, type='mmpretrain.ResNet', depth=18), head=dict(in_channels=512))",
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Two images and the work dirs of three trainings that never were: LaViT (with a log), its twin and a ResNet."""
    root = tmp_path_factory.mktemp('report')
    rng = np.random.default_rng(0)
    (root / 'images').mkdir()
    for i in range(2):
        cv2.imwrite(str(root / f'images/{i}.png'), rng.integers(0, 256, (96, 128, 3), np.uint8))
    for name, model in RUNS.items():
        (root / f'{name}.py').write_text(f"_base_ = '{LAVIT}'\nmodel = {model}\n")
        cfg = load_config(str(root / f'{name}.py'))
        work_dir = root / name
        work_dir.mkdir()
        cfg.dump(work_dir / f'{name}.py')
        load_toolbox(cfg.default_scope)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            weights = MODELS.build(cfg.model).state_dict()
        for step in (1, 2):
            torch.save(dict(state_dict=weights, meta=dict(iter=step)), work_dir / f'iter_{step}.pth')
        (work_dir / 'last_checkpoint').write_text(f'/moved/since/iter_{step}.pth')
    rows = [dict(step=i, lr=0.1, loss=1 / i, loss_diag=0.1, la_magnitude=0.5, la_entropy=2.0) for i in (1, 2)]
    log = root / 'lavit/2026/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text('\n'.join(map(json.dumps, rows)))
    return root


@pytest.fixture
def start(folder, monkeypatch, capsys):
    """Run a tool in the folder; give its exit code and what it said."""
    monkeypatch.chdir(folder)

    def start(tool, *args):
        code = run_tool(monkeypatch, f'analysis_tools/{tool}', *args)
        return code, capsys.readouterr()

    return start


def test_report(start):
    code, said = start('report.py', 'lavit', '--compare', 'twin', 'resnet', '--images', 'images')
    assert code == 0, said.err
    assert said.out.splitlines()[-1] == 'report -> lavit/report/report.html'
    page = Path('lavit/report/report.html').read_text()
    files = {path.name for path in Path('lavit/report').iterdir()}
    pictures = {'training.png', 'saturation.png', 'diagonality.png', 'pyramid.png', 'cost.png'}
    assert files == pictures | {'report.html'} | {f'attention_{i}.{kind}' for i in (0, 1) for kind in ('png', 'html')}
    for file in files - {'report.html'}:
        assert file in page
    assert 'Left out' not in page and 'The training was not validated' in page
    assert 'report.py lavit --compare twin resnet --images images' in page
    assert 'resnet is left out: ResNet is no plain vision transformer' in page
    assert 'iter_2.pth' in page


def test_names_of_trainings():
    def names(*folders):
        trained = SimpleNamespace(name='vit')
        return report._names([Run(Path(folder), trained, None) for folder in folders])

    assert names('work_dirs/a/seed_0/train', 'work_dirs/b/seed_0/train') == ['a', 'b']
    assert names('work_dirs/a/seed_0/train', 'work_dirs/b/seed_1/train') == ['a/seed_0', 'b/seed_1']
    assert names('x', 'y') == ['x', 'y']


def test_report_leaves_out_what_is_not_there(start):
    code, said = start('report.py', 'resnet', '--images', 'images/0.png', '--out-dir', 'out')
    assert code == 0, said.err
    page = Path('out/report.html').read_text()
    assert {path.name for path in Path('out').iterdir()} == {'report.html', 'pyramid.png', 'cost.png'}
    assert 'Left out: resnet has no log of a training.' in page
    assert page.count('Left out: ') == 4


def test_attention_maps_and_pyramid(start):
    config, checkpoint = LAVIT, 'lavit/iter_2.pth'
    code, said = start('attention_maps.py', config, checkpoint, '--images', 'images', '--point', 0.2, 0.9, '--heads')
    assert code == 0, said.err
    assert said.out.strip() == 'images/0.png -> outputs/attention_0_0.png, outputs/attention_0_0.html'
    page = Path('outputs/attention_0_0.html').read_text()
    payload = json.loads(page.partition('<script id="page" type="application/json">')[2].partition('</script>')[0])
    assert payload['model'] == 'classify_lavit_nano' and payload['point'] == [0.2, 0.9]
    code, said = start('feature_pyramid.py', config, checkpoint, '--images', 'images', '--out', 'a/b.png')
    assert code == 0, said.err
    assert cv2.imread('a/b.png').shape[2] == 3


TRAINED = [LAVIT, 'lavit/iter_1.pth', '--images', 'images']


@pytest.mark.parametrize(
    ('tool', 'args', 'message'),
    [
        ('report.py', ['images'], 'images has no config; expected the work dir of a training'),
        ('report.py', ['lavit', '--images', 'nowhere'], 'nowhere does not exist'),
        ('report.py', ['lavit'], "the images of the config's test are missing"),
        ('attention_maps.py', [LAVIT, 'lavit/iter_1.pth', '--point', 2, 0], '--point must be two numbers'),
        ('attention_maps.py', ['resnet/resnet.py', 'resnet/iter_1.pth', '--images', 'images'], 'no plain vision'),
        (
            'report.py',
            ['lavit', '--images', 'images', '--out-dir', 'images/0.png'],
            'cannot write to the folder images/0',
        ),
        ('attention_maps.py', [*TRAINED, '--out-dir', 'images/0.png'], 'choose another with --out-dir'),
        ('analyze_attention.py', [*TRAINED, '--out', 'images/0.png/a.png'], 'choose another with --out'),
        ('feature_pyramid.py', [*TRAINED, '--out', 'images/0.png/a.png'], 'choose another with --out'),
        ('feature_pyramid.py', [LAVIT, 'nowhere.pth', '--images', 'images'], 'nowhere.pth does not exist'),
    ],
)
def test_errors(start, tool, args, message):
    code, said = start(tool, *args)
    assert code == 2 and message in said.err and said.err.count('\n') == 1


def test_checkpoints_that_are_elsewhere(tmp_path):
    """With an out_dir of CheckpointHook's own."""
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere/epoch_3.pth').touch()
    (tmp_path / 'last_checkpoint').write_text(f'{tmp_path}/elsewhere/epoch_3.pth')
    assert find_last_checkpoint(tmp_path) == tmp_path / 'elsewhere/epoch_3.pth'
    (tmp_path / 'epoch_3.pth').touch()  # of a work dir that was moved
    assert find_last_checkpoint(tmp_path) == tmp_path / 'epoch_3.pth'


def test_a_work_dir_without_checkpoints(start, tmp_path):
    (tmp_path / 'config.py').write_text(Path('lavit/lavit.py').read_text())
    code, said = start('report.py', tmp_path)
    assert code == 2 and 'has no checkpoint; expected epoch_N.pth or iter_N.pth' in said.err


def test_a_training_whose_config_has_no_test(start, tmp_path):
    """As that of a distillation."""
    (tmp_path / 'student.py').write_text(f"_base_ = '{LAVIT}'\nval_dataloader = test_dataloader = None\n")
    for name in ('iter_2.pth', 'last_checkpoint'):
        (tmp_path / name).write_bytes(Path('lavit', name).read_bytes())
    images = '--images', 'images/0.png'
    code, said = start('report.py', tmp_path)
    assert code == 2 and 'has no test_dataloader' in said.err
    code, said = start('report.py', tmp_path, '--config', 'lavit.py', *images)
    assert code == 0, said.err
    assert {path.name for path in (tmp_path / 'report').iterdir()} >= {'saturation.png', 'attention_0.html', 'cost.png'}
