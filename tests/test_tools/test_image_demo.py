"""tools/image_demo.py with models of random weights, for all three tasks."""

import copy
import io
import json
import os
import signal
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from PIL import Image
from pycocotools import mask as coco_mask
from tool_runs import call_tool

from mmlavit.utils.checkpoint import load_checkpoint
from mmlavit.utils.publishing import save_published, strip_checkpoint
from mmlavit.visualization import drawing
from mmlavit_serve import Classification, Detections, Predictor, Segmentation, UserError
from mmlavit_serve.predictor import find_images
from mmlavit_serve.video import Video

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs/handwritten'
DIGITS = tuple('0123456789')
PALETTE = [[20 * index, 0, 0] for index in range(11)]
TASKS = {
    'mask_rcnn_lavit_nano.py': DIGITS,
    'upernet_lavit_nano.py': ('background', *DIGITS),
    'classify_lavit_nano.py': tuple(f'digit {digit}' for digit in DIGITS),
}


@pytest.fixture
def pictures(tmp_path):
    """A folder with a picture and a subfolder with another of the same name."""
    rng = np.random.default_rng(0)
    for folder, size in (('pictures', (97, 120)), ('pictures/more', (64, 64))):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / 'a.png'), rng.integers(0, 256, (*size, 3), np.uint8))
    (tmp_path / 'pictures/notes.txt').write_text('no picture')
    return tmp_path / 'pictures'


def write_checkpoint(name: str, path: Path) -> str:
    """Save random weights of a config's model as training would."""
    cfg = Config.fromfile(CONFIGS / name)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    meta = dict(dataset_meta=dict(classes=TASKS[name], palette=PALETTE[: len(TASKS[name])]))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    return str(path)


def image_demo(monkeypatch, *args):
    """Run the script in this process, which has imported the toolboxes already."""
    call_tool(monkeypatch, 'image_demo.py', *args)


def test_models_of_all_toolboxes_side_by_side(tmp_path, pictures):
    models = [
        Predictor(CONFIGS / name, write_checkpoint(name, tmp_path / f'{name}.pth'), device='cpu', score_thr=-1)
        for name in TASKS
    ]
    init_default_scope('mmengine')
    results = [model.predict(pictures / 'a.png') for model in models]
    assert [type(result) for result in results] == [Detections, Segmentation, Classification]
    assert DefaultScope.get_current_instance().scope_name == 'mmengine'


@pytest.mark.parametrize('name', TASKS)
def test_image_demo(name, tmp_path, pictures, monkeypatch, capsys):
    checkpoint = write_checkpoint(name, tmp_path / 'random.pth')
    out = tmp_path / 'out'
    options = []
    if 'mask_rcnn' in name:  # a random detector is sure of nothing
        options = ['--score-thr', '0', '--cfg-options', 'model.test_cfg.rcnn.score_thr=0']
        options.append('model.test_cfg.rcnn.max_per_img=3')
    image_demo(monkeypatch, pictures, CONFIGS / name, checkpoint, '--out-dir', out, '--device', 'cpu', *options)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(str(pictures))]
    assert len(lines) == 2
    for line, picture in zip(lines, ['a.png', 'more/a.png']):
        assert line.startswith(f'{pictures / picture}: ')
        assert line.endswith(f' -> {out / picture}')
        assert Image.open(out / picture).size == Image.open(pictures / picture).size
    assert any(label in lines[0] for label in TASKS[name])
    entries = json.loads((out / 'predictions.json').read_text())
    assert [entry['picture'] for entry in entries] == ['a.png', 'more/a.png']
    assert [(entry['height'], entry['width']) for entry in entries] == [(97, 120), (64, 64)]
    for entry in entries:
        check_entry(name, entry)


def test_config_options(tmp_path, pictures, monkeypatch, capsys):
    """They change the config, and are refused for a model that has none."""
    checkpoint = write_checkpoint('mask_rcnn_lavit_nano.py', tmp_path / 'random.pth')
    command = [pictures / 'a.png', CONFIGS / 'mask_rcnn_lavit_nano.py', checkpoint, '--score-thr', '0']
    for most in (3, 2):
        options = ['model.test_cfg.rcnn.score_thr=0', f'model.test_cfg.rcnn.max_per_img={most}']
        image_demo(monkeypatch, *command, '--out-dir', tmp_path / 'out', '--device', 'cpu', '--cfg-options', *options)
        (entry,) = json.loads((tmp_path / 'out/predictions.json').read_text())
        assert len(entry['objects']) == most
    with pytest.raises(SystemExit) as stopped:
        image_demo(monkeypatch, pictures, 'model.onnx', '--cfg-options', 'model.test_cfg=None')
    assert stopped.value.code == 2
    assert 'error: --cfg-options change a config; model.onnx is an exported model' in capsys.readouterr().err


def test_results_among_the_images(tmp_path, pictures, monkeypatch):
    """The second time, what was drawn the first time is no image to predict on; a name may be no text."""
    name = 'classify_lavit_nano.py'
    checkpoint = write_checkpoint(name, tmp_path / 'random.pth')
    os.link(pictures / 'a.png', os.fsencode(pictures) + b'/caf\xe9.png')
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(io.BytesIO(), encoding='utf-8'))
    for _ in range(2):
        image_demo(monkeypatch, pictures, CONFIGS / name, checkpoint, '--out-dir', pictures / 'out', '--device', 'cpu')
    entries = json.loads((pictures / 'out/predictions.json').read_text())
    assert sorted(entry['picture'] for entry in entries) == ['a.png', 'caf\udce9.png', 'more/a.png']


def test_a_folder_for_results_that_cannot_be_made(tmp_path, pictures, monkeypatch, capsys):
    checkpoint = write_checkpoint('classify_lavit_nano.py', tmp_path / 'random.pth')
    command = [pictures, CONFIGS / 'classify_lavit_nano.py', checkpoint, '--device', 'cpu']
    with pytest.raises(SystemExit) as stopped:
        image_demo(monkeypatch, *command, '--out-dir', pictures / 'a.png/out')
    assert stopped.value.code == 2
    assert 'a.png/out (Not a directory); choose another with --out-dir' in capsys.readouterr().err


def check_entry(name, entry):
    """What a model of random weights says about a picture is complete and consistent."""
    size = (entry['height'], entry['width'])
    if 'mask_rcnn' in name:
        assert len(entry['objects']) == 3
        for found in entry['objects']:
            assert found['class'] == TASKS[name][found['label']] and 0 < found['score'] < 1
            assert decode(found['mask'], size).shape == size
        return
    classes = entry['classes']
    assert [part['class'] for part in classes] == [TASKS[name][part['label']] for part in classes]
    if 'classify' in name:
        scores = [part['score'] for part in classes]
        assert len(scores) == 5 and scores == sorted(scores, reverse=True) and sum(scores) <= 1.001
        return
    masks = np.stack([decode(part['mask'], size) for part in classes])
    assert (masks.sum(axis=0) == 1).all()  # each pixel has one class
    assert [part['share'] for part in classes] == [round(mask.mean(), 4) for mask in masks]


def decode(mask, size):
    """Read run lengths as COCO's own tool does."""
    return coco_mask.decode(coco_mask.frPyObjects(mask, *size))


def write_frames(folder, number):
    """Frames of one colour each, ever brighter; five a second."""
    path = folder / 'camera.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 5, (160, 96))
    for index in range(number):
        writer.write(np.full((96, 160, 3), 250 // number * index, np.uint8))
    writer.release()
    return path


@pytest.fixture
def video(tmp_path):
    """Five frames."""
    return write_frames(tmp_path, 5)


def test_a_video_that_is_cut_off(tmp_path, monkeypatch, capsys):
    """What is there is drawn, and it is said that there should be more."""
    checkpoint = write_checkpoint('classify_lavit_nano.py', tmp_path / 'random.pth')
    video = write_frames(tmp_path, 20)
    content = video.read_bytes()
    video.write_bytes(content[: len(content) * 4 // 5])
    with pytest.raises(SystemExit) as stopped:
        image_demo(monkeypatch, video, CONFIGS / 'classify_lavit_nano.py', checkpoint, '--out-dir', tmp_path / 'out')
    assert stopped.value.code == 1
    said = capsys.readouterr()
    frames = len(json.loads((tmp_path / 'out/predictions.json').read_text()))
    assert 0 < frames < 20 and f'only {frames} of 20 frames could be read; is the file whole?' in said.err
    predictor = Predictor(CONFIGS / 'classify_lavit_nano.py', checkpoint)
    for source in (video, Video(video)):
        with pytest.warns(UserWarning, match=f'{video}: only {frames} of 20 frames could be read'):
            assert len(list(predictor.predict_each(source, batch_size=7))) == frames
    (tmp_path / 'camera.mp4').write_text('of the user')
    (tmp_path / 'predictions.json').write_text((tmp_path / 'out/predictions.json').read_text())
    with pytest.raises(SystemExit) as stopped:
        image_demo(monkeypatch, video, CONFIGS / 'classify_lavit_nano.py', checkpoint, '--out-dir', tmp_path)
    assert stopped.value.code == 2 and f'would overwrite {tmp_path / "camera.mp4"}' in capsys.readouterr().err


def test_an_image_that_cannot_be_drawn(tmp_path, pictures, monkeypatch, capsys):
    """The others are, and it is listed as one that was not predicted."""
    checkpoint = write_checkpoint('classify_lavit_nano.py', tmp_path / 'random.pth')
    out = tmp_path / 'out'
    (out / 'a.png').mkdir(parents=True)  # in the place of the drawing
    with pytest.raises(SystemExit) as stopped:
        image_demo(monkeypatch, pictures, CONFIGS / 'classify_lavit_nano.py', checkpoint, '--out-dir', out)
    assert stopped.value.code == 1 and 'a.png: not drawn: ' in capsys.readouterr().err
    entries = json.loads((out / 'predictions.json').read_text())
    assert [entry['picture'] for entry in entries if 'error' in entry] == ['a.png'] and len(entries) > 1
    assert all('classes' in entry or 'scores' in entry or 'label' in entry for entry in entries)


@pytest.mark.parametrize('name', ['photo.jfif', '~draft'])
def test_names_that_are_unlike_the_others(name, tmp_path, pictures, monkeypatch):
    """OpenCV writes no .jfif; the draft is of no user. By its path, a file may have any name."""
    checkpoint = write_checkpoint('classify_lavit_nano.py', tmp_path / 'random.pth')
    content = cv2.imencode('.png', np.full((64, 64, 3), 99, np.uint8))[1].tobytes()
    (pictures / name).write_bytes(content)
    monkeypatch.chdir(pictures)
    image_demo(monkeypatch, name, CONFIGS / 'classify_lavit_nano.py', checkpoint, '--out-dir', tmp_path / 'out')
    (entry,) = read_predictions(tmp_path)
    expected = f'{name}.png'
    assert entry['picture'] == expected and 'error' not in entry
    assert cv2.imread(str(tmp_path / 'out' / expected)) is not None


def test_home_folder_behind_an_equals_sign(tmp_path, pictures, monkeypatch):
    """Where a shell leaves ~ to us. What --resume keeps is kept."""
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    checkpoint = write_checkpoint('classify_lavit_nano.py', tmp_path / 'random.pth')
    for options in ([], ['--resume']):
        image_demo(monkeypatch, pictures, CONFIGS / 'classify_lavit_nano.py', checkpoint, '--out-dir=~/out', *options)
        assert len(read_predictions(tmp_path)) > 1
    assert not (tmp_path / '~').exists()


@pytest.mark.parametrize('name', ['upernet_lavit_nano.py', 'classify_lavit_nano.py'])
def test_video(name, tmp_path, video, monkeypatch, capsys):
    checkpoint = write_checkpoint(name, tmp_path / 'random.pth')
    out = tmp_path / 'out'
    image_demo(monkeypatch, video, CONFIGS / name, checkpoint, '--out-dir', out, '--device', 'cpu')
    said = capsys.readouterr().out
    assert f'{video}: 5 frames of 160x96, ' in said and f' -> {out / "camera.mp4"}' in said
    drawn = cv2.VideoCapture(str(out / 'camera.mp4'))
    assert drawn.get(cv2.CAP_PROP_FPS) == 5
    frames = [drawn.read()[1] for _ in range(5)]
    assert not drawn.read()[0]
    brightness = [frame[60:].mean() for frame in frames]  # below the class's name
    assert {frame.shape for frame in frames} == {(96, 160, 3)} and brightness == sorted(brightness)
    entries = json.loads((out / 'predictions.json').read_text())
    assert [entry['frame'] for entry in entries] == [0, 1, 2, 3, 4]
    assert [entry['seconds'] for entry in entries] == [0, 0.2, 0.4, 0.6, 0.8]
    for entry in entries:
        check_entry(name, entry)


BROKEN = {
    'empty.png': 'cannot be read as an image',
    'text.jpg': 'cannot be read as an image',
    'cut.jpg': 'cannot be read as an image',
    'cut.png': 'cannot be read as an image',
    'missing.png': 'does not exist',
}


def write_broken(folder: Path):
    """One file of each kind, beside those that are whole."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    (folder / 'empty.png').touch()
    (folder / 'text.jpg').write_text('no picture')
    for name in ('cut.jpg', 'cut.png'):
        content = cv2.imencode(Path(name).suffix, noise)[1].tobytes()
        (folder / name).write_bytes(content[:-20])
    (folder / 'missing.png').symlink_to(folder / 'nothing')


def demo_args(tmp_path, pictures, *more):
    """Arguments for a classifier of random weights."""
    name = 'classify_lavit_nano.py'
    checkpoint = write_checkpoint(name, tmp_path / 'random.pth')
    return [pictures, CONFIGS / name, checkpoint, '--out-dir', tmp_path / 'out', '--device', 'cpu', *more]


def read_predictions(tmp_path):
    return json.loads((tmp_path / 'out/predictions.json').read_text())


def test_broken_images(tmp_path, pictures, monkeypatch, capsys):
    """They are listed with the reason, at the end as well, and the others are predicted."""
    write_broken(pictures)
    with pytest.raises(SystemExit) as ended:
        image_demo(monkeypatch, *demo_args(tmp_path, pictures))
    assert ended.value.code == 1
    entries = {entry['picture']: entry for entry in read_predictions(tmp_path)}
    assert entries.keys() == {*BROKEN, 'a.png', 'more/a.png'}
    for name, reason in BROKEN.items():
        assert reason in entries[name]['error'] and entries[name].keys() == {'picture', 'error'}
    assert entries['a.png']['classes'] and (tmp_path / 'out/a.png').is_file()
    error = capsys.readouterr().err
    summary = error[error.index('Not predicted, or not all of it: 5') :].splitlines()[1:]
    assert [line.split(': ')[0] for line in summary] == [f'  {pictures / name}' for name in sorted(BROKEN)]


def test_a_list_of_the_user_is_kept(tmp_path, pictures, monkeypatch, capsys):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/predictions.json').write_text('mine')
    with pytest.raises(SystemExit) as ended:
        image_demo(monkeypatch, *demo_args(tmp_path, pictures))
    assert ended.value.code == 2 and 'has a predictions.json that no run has written' in capsys.readouterr().err
    assert (tmp_path / 'out/predictions.json').read_text() == 'mine'


def test_no_checkpoint(pictures, monkeypatch, capsys):
    config = CONFIGS / 'classify_lavit_nano.py'
    with pytest.raises(SystemExit) as ended:
        image_demo(monkeypatch, pictures, config, '--cfg-options', 'model.head.topk=(1,)')
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f'error: {config} is not an exported model (.onnx), so it needs a check')
    with pytest.raises(UserError, match=f'^{config} is not an exported model'):
        Predictor(Config.fromfile(config))


def test_a_folder_that_may_not_be_read(pictures, monkeypatch):
    scan = os.scandir

    def refuse(path):
        if str(path).endswith('more'):
            raise PermissionError(13, 'Permission denied', str(path))
        return scan(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    with pytest.warns(UserWarning, match=r'more cannot be read \(Permission denied\): what is in it is left out'):
        assert find_images(pictures) == [pictures / 'a.png']
    with pytest.raises(UserError, match='more cannot be read: Permission denied'):
        find_images(pictures / 'more')


def test_a_name_that_is_too_long():
    for name in ('a' * 300 + '.mp4', 'a' * 300 + '.png'):
        with pytest.raises(UserError, match='cannot be read: File name too long'):
            next(Predictor.predict_each(None, name))
    with pytest.raises(UserError, match='cannot be read: File name too long'):
        Predictor('a' * 300 + '.onnx')


def test_a_classifier_whose_config_has_classes(tmp_path, pictures):
    """As configs in pure Python, with weights that say nothing of their dataset."""
    from mmpretrain.datasets import CustomDataset

    cfg = Config.fromfile(CONFIGS / 'classify_lavit_nano.py')
    checkpoint = write_checkpoint('classify_lavit_nano.py', tmp_path / 'random.pth')
    torch.save(dict(state_dict=torch.load(checkpoint)['state_dict']), checkpoint)
    cfg.test_dataloader.dataset.type = CustomDataset
    assert isinstance(Predictor(cfg, checkpoint).predict(pictures / 'a.png'), Classification)


def test_resume(tmp_path, pictures, monkeypatch, capsys):
    """Stopped after the first image, it goes on with the second; what was broken is tried again."""
    (pictures / 'b.png').touch()
    args = demo_args(tmp_path, pictures)
    drawn = []

    def draw(path, image, write=drawing.write_picture):
        write(path, image)
        drawn.append(path.name)
        if len(drawn) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(drawing, 'write_picture', draw)
    with pytest.raises(SystemExit) as stopped:
        image_demo(monkeypatch, *args)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert 'stopped by SIGTERM; the same command with --resume' in capsys.readouterr().err
    first = read_predictions(tmp_path)
    assert [entry['picture'] for entry in first] == ['a.png']
    with pytest.raises(SystemExit) as ended:
        image_demo(monkeypatch, *args, '--resume')
    assert ended.value.code == 1 and len(drawn) == 2
    entries = read_predictions(tmp_path)
    assert entries[0] == first[0]
    assert [entry['picture'] for entry in entries] == ['a.png', 'b.png', 'more/a.png'] and 'error' in entries[1]
    cv2.imwrite(str(pictures / 'b.png'), np.zeros((64, 64, 3), np.uint8))
    image_demo(monkeypatch, *args, '--resume')
    assert len(drawn) == 3
    entries = read_predictions(tmp_path)
    assert sorted(entry['picture'] for entry in entries) == ['a.png', 'b.png', 'more/a.png']
    assert not any('error' in entry for entry in entries)
    image_demo(monkeypatch, *args, '--resume')  # nothing is left to do
    assert len(drawn) == 3 and read_predictions(tmp_path) == entries


def test_resume_beside_another_file(tmp_path, pictures, monkeypatch, capsys):
    """What is no list of predictions is not overwritten."""
    args = demo_args(tmp_path, pictures, '--resume')
    (tmp_path / 'out').mkdir()
    for text in ('mine', '[\n{"frame": 0}\n]\n', '[\n1\n]\n'):  # the second is of a video
        (tmp_path / 'out/predictions.json').write_text(text)
        with pytest.raises(SystemExit) as ended:
            image_demo(monkeypatch, *args)
        assert ended.value.code == 2 and 'is not a list of predictions' in capsys.readouterr().err
        assert (tmp_path / 'out/predictions.json').read_text() == text


def test_memory_limit(tmp_path, pictures, monkeypatch, capsys):
    """What would take more is one of those that are not predicted."""
    name = 'upernet_lavit_nano.py'
    checkpoint = write_checkpoint(name, tmp_path / 'random.pth')
    cv2.imwrite(str(pictures / 'large.png'), np.zeros((2000, 2000, 3), np.uint8))
    args = [pictures, CONFIGS / name, checkpoint, '--out-dir', tmp_path / 'out', '--device', 'cpu']
    with pytest.raises(SystemExit) as ended:
        image_demo(monkeypatch, *args, '--memory-limit', '0.1')
    assert ended.value.code == 1
    entries = read_predictions(tmp_path)
    assert ['error' in entry for entry in entries] == [False, True, False]
    assert entries[1]['error'].startswith('the image is 2000x2000 and needs about ')
    assert 'but 0.1 GB are allowed' in capsys.readouterr().err


def test_keep_going_in_batches(tmp_path, pictures):
    """Each image has its place, also where one of those that are computed together is broken."""
    write_broken(pictures)
    name = 'classify_lavit_nano.py'
    predictor = Predictor(CONFIGS / name, write_checkpoint(name, tmp_path / 'random.pth'))
    files = [pictures / 'a.png', *(pictures / broken for broken in BROKEN), pictures / 'more/a.png']
    found = list(predictor.predict_each(files, batch_size=3, keep_going=True))
    assert [isinstance(result, UserError) for _, result in found] == [False, *[True] * len(BROKEN), False]
    assert [image is None for image, _ in found] == [False, *[True] * len(BROKEN), False]
    for place, (_, reason) in enumerate(BROKEN.items(), 1):
        assert reason in str(found[place][1])
    np.testing.assert_array_equal(found[-1][1].scores, predictor.predict(files[-1]).scores)
    with pytest.raises(UserError, match='empty.png cannot be read'):
        list(predictor.predict_each(files))


@pytest.mark.parametrize('name', TASKS)
def test_names_of_the_config(name, tmp_path, pictures):
    """Where a checkpoint has none, be it weights alone: not those of COCO or Cityscapes."""
    state = load_checkpoint(write_checkpoint(name, tmp_path / 'random.pth'))['state_dict']
    cfg = Config.fromfile(CONFIGS / name)
    dataset = cfg.test_dataloader.dataset
    if cfg.default_scope == 'mmpretrain':
        dataset.classes = list(DIGITS)  # else there are only the folders
    names = dataset.classes if 'classes' in dataset else dataset.metainfo.classes
    for number, content in enumerate([state, dict(state_dict=state, meta=dict(epoch=3))]):
        torch.save(content, tmp_path / f'{number}.pth')
        result = Predictor(cfg, str(tmp_path / f'{number}.pth'), score_thr=0).predict(pictures / 'a.png')
        assert list(result.classes) == list(names)


@pytest.mark.parametrize('name', TASKS)
def test_names_in_a_file(name, tmp_path, pictures):
    """As mmengine and mmpretrain take them."""
    state = load_checkpoint(write_checkpoint(name, tmp_path / 'random.pth'))['state_dict']
    torch.save(state, tmp_path / 'weights.pth')
    names = [f'class {number}' for number in range(len(TASKS[name]))]
    (tmp_path / 'names.txt').write_text('\n'.join(names))
    cfg = Config.fromfile(CONFIGS / name)
    dataset = cfg.test_dataloader.dataset
    for file in ('names.txt', 'nowhere.txt'):
        if cfg.default_scope == 'mmpretrain':
            dataset.classes = str(tmp_path / file)
        else:
            dataset.metainfo = dict(classes=str(tmp_path / file))
        if file == 'names.txt':
            predictor = Predictor(cfg, str(tmp_path / 'weights.pth'), score_thr=0)
            assert list(predictor.predict(pictures / 'a.png').classes) == names
            continue
        with pytest.raises(UserError, match='names of classes cannot be read from .*nowhere.txt'):
            Predictor(cfg, str(tmp_path / 'weights.pth'))


@pytest.mark.parametrize('name', TASKS)
def test_steps_with_a_scope(name, tmp_path, pictures):
    checkpoint = write_checkpoint(name, tmp_path / 'random.pth')
    cfg = Config.fromfile(CONFIGS / name)
    expected = Predictor(cfg, checkpoint, score_thr=0).predict(pictures / 'a.png').to_dict()
    for step in cfg.test_dataloader.dataset.pipeline:
        if step.type.startswith('Load'):
            step.type = f'{cfg.default_scope if step.type == "LoadAnnotations" else "mmcv"}.{step.type}'
    assert Predictor(cfg, checkpoint, score_thr=0).predict(pictures / 'a.png').to_dict() == expected


def test_gray_images(tmp_path):
    name = 'classify_lavit_nano.py'
    cfg = Config.fromfile(CONFIGS / name)
    checkpoint = write_checkpoint(name, tmp_path / 'random.pth')
    loading = cfg.test_dataloader.dataset.pipeline[0]
    for options, message in (
        (dict(color_type='grayscale'), "color_type='grayscale'"),
        (dict(color_type='unchanged'), "color_type='unchanged'"),
        (dict(color_type='color_ignore_orientation'), "color_type='color_ignore_orientation'"),
        (dict(color_type='color', imdecode_backend='tifffile'), "imdecode_backend='tifffile'"),
    ):
        loading.update(options)
        with pytest.raises(UserError, match=f'the model reads images with {message}'):
            Predictor(cfg, checkpoint)


def test_float_images(tmp_path, pictures):
    """They are not rounded when they are resized, as in the test pipeline."""
    name = 'classify_lavit_nano.py'
    cfg = Config.fromfile(CONFIGS / name)
    pipeline = cfg.test_dataloader.dataset.pipeline
    pipeline[0].to_float32 = True
    pipeline.insert(1, dict(type='Resize', scale=(77, 77)))
    predictor = Predictor(cfg, write_checkpoint(name, tmp_path / 'random.pth'), device='cpu')
    init_default_scope('mmpretrain')
    data = Compose(pipeline)(dict(img_path=str(pictures / 'a.png')))
    assert (data['inputs'] % 1 != 0).any()
    with torch.no_grad():
        wanted = predictor.model.model.test_step(pseudo_collate([data]))[0].pred_score
    np.testing.assert_allclose(predictor.predict(pictures / 'a.png').scores, wanted.numpy(), rtol=1e-6)


def test_binary_segmentor(tmp_path, pictures):
    """One channel for two classes, whose names a checkpoint may have in an array."""
    from mmseg.apis import inference_model

    cfg = Config.fromfile(CONFIGS / 'upernet_lavit_nano.py')
    binary = dict(
        num_classes=2, out_channels=1, threshold=0.5, loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True)
    )
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        del head.loss_decode
        head.update(binary)
    with DefaultScope.overwrite_default_scope('mmseg'):
        weights = MODELS.build(cfg.model).state_dict()
    meta = dict(dataset_meta=dict(classes=np.array(['a', 'b'])))
    torch.save(dict(state_dict=weights, meta=meta), tmp_path / 'a.pth')
    image = cv2.imread(str(pictures / 'a.png'))
    with DefaultScope.overwrite_default_scope('mmseg'):
        scores = inference_model(Predictor(cfg, str(tmp_path / 'a.pth')).model.model, image).seg_logits.data[0]
    weights['decode_head.conv_seg.bias'] -= scores.logit().median()  # so that there are both
    torch.save(dict(state_dict=weights, meta=meta), tmp_path / 'a.pth')
    predictor = Predictor(cfg, str(tmp_path / 'a.pth'))
    with DefaultScope.overwrite_default_scope('mmseg'):
        scores = inference_model(predictor.model.model, image).seg_logits.data[0]
    result = predictor.predict(pictures / 'a.png')
    assert set(np.unique(result.labels)) == {0, 1} and result.classes == ('a', 'b')
    assert np.array_equal(result.labels, scores > 0.5)
    assert {entry['class'] for entry in result.to_dict()['classes']} == {'a', 'b'}


def test_files_without_weights(tmp_path):
    for number, content in enumerate(([torch.ones(1)], dict(state_dict=None))):
        torch.save(content, tmp_path / f'{number}.pth')
        with pytest.raises(UserError, match=f'{number}.pth has no weights'):
            Predictor(CONFIGS / 'classify_lavit_nano.py', str(tmp_path / f'{number}.pth'))


def test_a_file_of_names_that_a_checkpoint_names(tmp_path, pictures, monkeypatch):
    """It is not read: a checkpoint may come from anybody, and what is drawn may go to others."""
    (tmp_path / 'private.txt').write_text('\n'.join(['secret'] * 10))
    checkpoint = write_checkpoint('classify_lavit_nano.py', tmp_path / 'random.pth')
    content = torch.load(checkpoint)
    content['meta']['dataset_meta'] = dict(classes=str(tmp_path / 'private.txt'))
    torch.save(content, checkpoint)
    image_demo(monkeypatch, pictures, CONFIGS / 'classify_lavit_nano.py', checkpoint, '--out-dir', tmp_path / 'out')
    assert 'secret' not in (tmp_path / 'out/predictions.json').read_text()


def test_pgm(tmp_path, pictures, monkeypatch):
    cv2.imwrite(str(pictures / 'b.pgm'), np.zeros((64, 64), np.uint8))
    args = demo_args(tmp_path, pictures / 'b.pgm')
    image_demo(monkeypatch, *args)
    assert [entry['picture'] for entry in read_predictions(tmp_path)] == ['b.pgm.png']
    assert cv2.imread(str(tmp_path / 'out/b.pgm.png')).shape == (64, 64, 3)


@pytest.mark.parametrize('name', TASKS)
def test_wrapped_data_set(name, tmp_path, pictures):
    checkpoint = write_checkpoint(name, tmp_path / 'random.pth')
    cfg = Config.fromfile(CONFIGS / name)
    inner = cfg.test_dataloader.dataset
    inner.data_root = 'nowhere'  # predictions need no dataset
    expected = Predictor(cfg, checkpoint, score_thr=0).predict(pictures / 'a.png')
    for wrapper in (
        dict(type='RepeatDataset', times=2, dataset=inner),
        dict(type='ConcatDataset', datasets=[inner, copy.deepcopy(inner)]),
    ):
        cfg.test_dataloader.dataset = wrapper
        found = Predictor(cfg, checkpoint, score_thr=0).predict(pictures / 'a.png')
        assert found.to_dict() == expected.to_dict()
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[inner, dict(inner, pipeline=[])])
    with pytest.raises(UserError, match='no test_dataloader whose dataset has one pipeline'):
        Predictor(cfg, checkpoint)
    cfg.test_dataloader = None
    with pytest.raises(UserError, match='no test_dataloader whose dataset has one pipeline'):
        Predictor(cfg, checkpoint)


def test_12_bits(tmp_path):
    """In a file of 16 bits, nothing is left of them; training refuses it, too."""
    predictor = Predictor(
        CONFIGS / 'classify_lavit_nano.py', write_checkpoint('classify_lavit_nano.py', tmp_path / 'a')
    )
    pixels = np.random.default_rng(0).integers(0, 4096, (64, 64, 3)).astype(np.uint16)
    for suffix in ('.png', '.tiff'):
        cv2.imwrite(str(tmp_path / f'dark{suffix}'), pixels)
        with pytest.raises(UserError, match='has 16 bits in each channel, and nothing but black'):
            predictor.predict(tmp_path / f'dark{suffix}')
    cv2.imwrite(str(tmp_path / 'full.png'), pixels * 16)
    cv2.imwrite(str(tmp_path / 'black.png'), np.zeros((64, 64, 3), np.uint8))
    for name in ('full.png', 'black.png'):
        assert predictor.predict(tmp_path / name).shape == (64, 64)
    with pytest.raises(UserError, match='batch_size is 0, expected 1 or more'):
        next(predictor.predict_each(tmp_path, batch_size=0))


def test_images_of_a_batch_that_are_run_one_by_one(tmp_path):
    """They need the memory of one."""
    predictor = Predictor(
        CONFIGS / 'mask_rcnn_lavit_nano.py', write_checkpoint('mask_rcnn_lavit_nano.py', tmp_path / 'a')
    )
    image = np.zeros((160, 160, 3), np.uint8)
    predictor.memory_limit = 1.5 * predictor.model.memory.at((160, 160), (160, 160))
    assert len(list(predictor.predict_each([image] * 3, batch_size=3))) == 3


def test_resizing_needs_memory_too(tmp_path):
    """Of a thin image, the short edge is made 256 before most of it is cut away."""
    cfg = Config.fromfile(CONFIGS / 'classify_lavit_nano.py')
    step = dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bicubic')
    cfg.test_dataloader.dataset.pipeline[1:1] = [step, dict(type='CenterCrop', crop_size=64)]
    predictor = Predictor(cfg, write_checkpoint('classify_lavit_nano.py', tmp_path / 'a'), memory_limit=8e8)
    assert predictor.predict(np.zeros((20, 30, 3), np.uint8)).shape == (20, 30)
    with pytest.raises(UserError, match='the image is 1x1000 and needs about 0.9 GB of memory'):
        predictor.predict(np.zeros((1, 1000, 3), np.uint8))


def test_nothing_left_by_resizing(tmp_path):
    """A picture so narrow that its scaled width is zero."""
    name = 'classify_lavit_nano.py'
    cfg = Config.fromfile(CONFIGS / name)
    cfg.test_dataloader.dataset.pipeline.insert(1, dict(type='Resize', scale=(64, 64), keep_ratio=True))
    predictor = Predictor(cfg, write_checkpoint(name, tmp_path / 'random.pth'))
    with pytest.raises(UserError, match='an image of 1x5000 cannot be resized as the model wants it'):
        predictor.predict(np.zeros((1, 5000, 3), np.uint8))


@pytest.mark.parametrize('name', TASKS)
def test_published_as_safetensors(name, tmp_path, pictures, monkeypatch):
    """The classes come along."""
    checkpoint = load_checkpoint(write_checkpoint(name, tmp_path / 'random.pth'))
    cfg = Config.fromfile(CONFIGS / name)
    records = []
    for suffix in ('.pth', '.safetensors'):
        [file] = save_published(strip_checkpoint(checkpoint), tmp_path / f'published{suffix}')
        result = Predictor(cfg, file, score_thr=0).predict(pictures / 'a.png')
        assert list(result.classes) == list(TASKS[name])
        records.append(result.to_dict())
    assert records[0] == records[1]


def test_files_of_the_user_are_kept(tmp_path, pictures, monkeypatch, capsys):
    """Beside an image, only a file is written over that a run before has drawn; two images are not drawn to one."""
    arguments = CONFIGS / 'classify_lavit_nano.py', write_checkpoint('classify_lavit_nano.py', tmp_path / 'a.pth')
    pictures = pictures / 'more'
    for name in 'bc':
        Image.new('L', (40, 40), 90).save(pictures / f'{name}.pgm')

    def run(source, out_dir):
        with pytest.raises(SystemExit) as stopped:
            image_demo(monkeypatch, source, *arguments, '--out-dir', out_dir)
            sys.exit(0)
        return stopped.value.code, capsys.readouterr().err

    for _ in range(2):
        assert run(pictures / 'b.pgm', pictures) == (0, '')
    Image.new('L', (40, 40)).save(pictures / 'c.pgm.png')
    code, said = run(pictures / 'c.pgm', pictures)
    assert code == 2 and f'would overwrite {pictures / "c.pgm.png"}' in said
    code, said = run(pictures, tmp_path / 'out')
    assert code == 2 and 'b.pgm.png would both be drawn to' in said
    # Results in the folder above the images, where others have their names.
    user = {path: path.read_bytes() for path in pictures.parent.glob('*.png')}
    code, said = run(pictures / 'a.png', pictures.parent)
    assert code == 2 and f'would overwrite {pictures.parent / "a.png"}' in said
    assert user and all(path.read_bytes() == content for path, content in user.items())
    # An image that is a result of another: new/a.jpg and new/new/a.jpg, drawn into the folder above.
    (tmp_path / 'above/new/new').mkdir(parents=True)
    for folder in ('above/new', 'above/new/new'):
        (tmp_path / folder / 'a.png').write_bytes((pictures / 'a.png').read_bytes())
    code, said = run(tmp_path / 'above/new', tmp_path / 'above')
    assert code == 2 and f'would overwrite {tmp_path / "above/new/a.png"}' in said


def test_no_objects(tmp_path, pictures):
    name = 'mask_rcnn_lavit_nano.py'
    predictor = Predictor(CONFIGS / name, write_checkpoint(name, tmp_path / 'a.pth'), score_thr=0.9)
    result = predictor.predict(pictures / 'a.png')
    assert result.describe() == 'no objects' and result.to_dict() == dict(objects=[])


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'pictures': 'nowhere'}, 'error: nowhere does not exist'),
        ({'checkpoint': 'no.pth'}, 'error: checkpoint no.pth does not exist'),
        ({'config': 'no.py'}, 'error: config no.py does not exist'),
        ({'config': 'no.onnx'}, 'error: no.onnx has its weights inside'),
        ({'device': 'wombat'}, 'error: device wombat cannot be used'),
        ({'out_dir': '.'}, 'error: --out-dir . would overwrite'),
        ({'pictures': 'empty.mp4'}, 'error: empty.mp4 cannot be read as a video'),
    ],
)
def test_mistakes(changes, message, tmp_path, pictures, monkeypatch, capsys):
    monkeypatch.chdir(pictures)
    if 'out_dir' in changes:
        changes = dict(changes, checkpoint=write_checkpoint('classify_lavit_nano.py', tmp_path / 'a.pth'))
    (tmp_path / 'b.pth').touch()
    (pictures / 'empty.mp4').touch()
    given = dict(
        pictures=pictures,
        config=CONFIGS / 'classify_lavit_nano.py',
        checkpoint=tmp_path / 'b.pth',
        device='cpu',
        out_dir=tmp_path / 'out',
    )
    given.update(changes)
    device, out_dir = given.pop('device'), given.pop('out_dir')
    with pytest.raises(SystemExit) as stopped:
        image_demo(monkeypatch, *given.values(), '--device', device, '--out-dir', out_dir)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count('\n') == 1
    assert not list(tmp_path.rglob('predictions.json'))


def test_find_images_through_links(pictures, tmp_path):
    links = tmp_path / 'links'
    links.mkdir()
    (links / 'class').symlink_to(pictures, target_is_directory=True)
    (links / 'b.png').symlink_to(pictures / 'a.png')
    (pictures / 'more/circle').symlink_to(links, target_is_directory=True)
    assert find_images(links) == [links / 'b.png', links / 'class/a.png', links / 'class/more/a.png']


def test_find_images(pictures):
    assert find_images(pictures) == [pictures / 'a.png', pictures / 'more/a.png']
    assert find_images(pictures / 'a.png') == [pictures / 'a.png']
