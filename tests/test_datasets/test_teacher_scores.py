"""Scores of a teacher: computed by the tool, read by the transform, learned by mmpretrain's head."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.dataset import default_collate
from mmengine.registry import MODELS, DefaultScope
from tool_runs import call_tool

from mmlavit.datasets.teacher_scores import AddTeacherScores, TeacherScores
from mmlavit.errors import ConfigError, UserError
from mmlavit.utils.toolbox import load_toolbox

ROOT = Path(__file__).parents[2]
TEACHER = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[100] * 3, std=[50] * 3, to_rgb=True),
    backbone=dict(type='LaViT', arch='nano', out_indices=(3,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=1000, in_channels=192),
)
pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64)), dict(type='PackInputs')]
test_dataloader = dict(dataset=dict(pipeline=pipeline))
"""
SYNSETS = ('n01443537', 'n01440764')  # goldfish and tench: numbers 1 and 0 of ImageNet


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    """Three images in two folders; config, weights and network of a teacher."""
    root = tmp_path_factory.mktemp('teacher')
    rng = np.random.default_rng(0)
    for name in ('a/1.png', 'a/2.png', 'b/3.png'):
        path = root / 'images' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (64, 64, 3), np.uint8))
    (root / 'teacher.py').write_text(TEACHER)
    (root / 'classes.txt').write_text('\n'.join(SYNSETS))
    load_toolbox('mmpretrain')
    cfg = {}
    exec(TEACHER, cfg)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg['model'])
    torch.save(model.state_dict(), root / 'teacher.pth')
    return root, model.eval()


def predict(monkeypatch, root, *args):
    model = root / 'teacher.py', root / 'teacher.pth'
    call_tool(monkeypatch, 'misc/predict_scores.py', *model, '--images', root / 'images', *args)


@torch.no_grad()
def literal(root, model, name):
    """Scores of an image and of its mirror image, averaged."""
    image = cv2.imread(str(root / 'images' / name))[:, :, ::-1].astype(np.float32)
    both = [torch.from_numpy(((view - 100) / 50).copy()).permute(2, 0, 1) for view in (image, image[:, ::-1])]
    return model(torch.stack(both)).mean(0).numpy()


@pytest.mark.parametrize('classes', [False, True])
def test_scores_are_the_models(teacher, monkeypatch, tmp_path, classes):
    root, model = teacher
    out = tmp_path / 'scores.npz'
    predict(monkeypatch, root, '--out', out, '--batch-size', 2, *(['--classes', root / 'classes.txt'] * classes))
    scores = TeacherScores.load(str(out))
    assert scores.names == ['a/1.png', 'a/2.png', 'b/3.png']
    wanted = np.stack([literal(root, model, name) for name in scores.names])
    np.testing.assert_allclose(scores.logits, wanted[:, [1, 0]] if classes else wanted, atol=2e-3)


def test_images_of_different_sizes(teacher, monkeypatch, tmp_path):
    """They are not padded to one size, which would change their scores."""
    root, model = teacher
    config = TEACHER.replace("dict(type='Resize', scale=(64, 64)), ", '')
    (tmp_path / 'teacher.py').write_text(config)
    rng = np.random.default_rng(0)
    (tmp_path / 'images').mkdir()
    for name, size in (('1.png', (64, 96)), ('2.png', (96, 64)), ('3.png', (64, 96))):
        cv2.imwrite(str(tmp_path / 'images' / name), rng.integers(0, 256, (*size, 3), np.uint8))
    args = ('--images', tmp_path / 'images', '--out', tmp_path / 'scores.npz', '--batch-size', 2)
    call_tool(monkeypatch, 'misc/predict_scores.py', tmp_path / 'teacher.py', root / 'teacher.pth', *args)
    scores = TeacherScores.load(str(tmp_path / 'scores.npz'))
    np.testing.assert_allclose(
        scores.logits, np.stack([literal(tmp_path, model, name) for name in scores.names]), atol=2e-3
    )


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--out', 'scores.txt'], 'expected a name that ends in .npz'),
        (['--out', 'scores.npz', '--batch-size', 0], '--batch-size must be positive'),
        (['--out', 'scores.npz', '--classes', __file__], 'expected synsets of ImageNet'),
        (['--out', f'{__file__}/scores.npz'], 'cannot write to the folder'),
        (['--out', 'scores.npz', '--classes', 'no.txt'], '--classes no.txt does not exist'),
        (['--out', 'scores.npz', '--device', 'cuda:99'], 'device cuda:99 cannot be used'),
    ],
)
def test_errors_of_the_tool(teacher, monkeypatch, capsys, args, message):
    with pytest.raises(SystemExit) as stop:
        predict(monkeypatch, teacher[0], *args)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_classes_without_timm(teacher, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'timm.data', None)
    with pytest.raises(SystemExit) as stop:
        predict(monkeypatch, teacher[0], '--out', 'scores.npz', '--classes', __file__)
    assert stop.value.code == 2 and '--classes needs timm: pip install timm' in capsys.readouterr().err


def test_broken_image(teacher, monkeypatch, capsys, tmp_path):
    (tmp_path / 'a.jpg').write_bytes(b'no image')
    with pytest.raises(SystemExit) as stop:
        predict(monkeypatch, teacher[0], '--out', tmp_path / 'scores.npz', '--images', tmp_path)
    assert stop.value.code == 2
    assert 'a.jpg is not an image that can be read' in capsys.readouterr().err


def test_preprocessor_beside_the_model(teacher, monkeypatch, tmp_path):
    """mmpretrain's own configs have it there."""
    root = teacher[0]
    beside = TEACHER.replace('    data_preprocessor=', '    #') + '\ndata_preprocessor = '
    beside += 'dict(mean=[100] * 3, std=[50] * 3, to_rgb=True)\n'
    (tmp_path / 'beside.py').write_text(beside)
    found = []
    for config in (root / 'teacher.py', tmp_path / 'beside.py'):
        out = tmp_path / f'{config.stem}.npz'
        command = [config, root / 'teacher.pth', '--images', root / 'images', '--out', out]
        call_tool(monkeypatch, 'misc/predict_scores.py', *command)
        found.append(TeacherScores.load(str(out)).logits)
    np.testing.assert_array_equal(*found)


def write(path, names=('a/1.png',), classes=3):
    logits = np.random.default_rng(0).standard_normal((len(names), classes)).astype(np.float16)
    TeacherScores(names, logits).save(str(path))
    return logits.astype(np.float64)


def test_loss_is_the_mean_of_both(tmp_path):
    """Of mmpretrain's own head, against the losses for label and teacher one by one."""
    logits = torch.from_numpy(write(tmp_path / 's.npz', ['a/1.png', 'b/2.png']))
    add = AddTeacherScores(str(tmp_path / 's.npz'), root='data', share=0.25)
    load_toolbox('mmpretrain')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        from mmpretrain.registry import TRANSFORMS

        pack = TRANSFORMS.build(dict(type='PackInputs'))
        loss = dict(type='CrossEntropyLoss', use_soft=True)
        head = MODELS.build(dict(type='LinearClsHead', num_classes=3, in_channels=5, loss=loss))
    samples = [dict(img_path=f'data/{name}', gt_label=i + 1) for i, name in enumerate(['a/1.png', 'b/2.png'])]
    packed = [pack(add(dict(sample, img=np.zeros((4, 4, 3), np.uint8)))) for sample in samples]
    features = torch.randn(2, 5)
    found = head.loss((features,), default_collate(packed)['data_samples'])['loss']
    given = head.fc(features).double()
    wanted = 0.75 * F.cross_entropy(given, torch.tensor([1, 2]))
    wanted += 0.25 * F.cross_entropy(given, logits.softmax(1))
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)


def test_errors_of_the_transform(tmp_path):
    path = str(tmp_path / 's.npz')
    with pytest.raises(UserError, match='does not exist; make it with'):
        AddTeacherScores(path, root='data')
    (tmp_path / 's.npz').write_bytes(b'no archive')
    with pytest.raises(UserError, match='has no scores of a teacher'):
        AddTeacherScores(path, root='data')
    np.savez(path, names=np.array([object()], dtype=object), logits=np.zeros((1, 3)))
    with pytest.raises(UserError, match='has no scores of a teacher'):  # a pickle inside
        AddTeacherScores(path, root='data')
    np.save(tmp_path / 'array.npy', np.zeros(3))
    for content in (b'', (tmp_path / 'array.npy').read_bytes()):
        (tmp_path / 's.npz').write_bytes(content)
        with pytest.raises(UserError, match='has no scores of a teacher'):
            AddTeacherScores(path, root='data')
    np.savez(path, names=np.array(['1.png', '2.png']), logits=np.zeros((1, 3)))
    with pytest.raises(UserError, match='has no scores of a teacher: 2 names, 1 logits'):
        AddTeacherScores(path, root='data')
    write(path)
    with pytest.raises(ConfigError, match='share must be from 0 to 1'):
        AddTeacherScores(path, root='data', share=1.5)
    add = AddTeacherScores(path, root='data')
    with pytest.raises(UserError, match='has no scores of a/2.png'):
        add(dict(img_path='data/a/2.png', gt_label=0))
    with pytest.raises(UserError, match='has label 3, but .* has 3 classes'):
        add(dict(img_path='data/a/1.png', gt_label=3))
