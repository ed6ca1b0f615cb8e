"""Trained models and their images: datasets in wrappers or none at all, and what does not fit."""

import shutil
from copy import deepcopy
from pathlib import Path

import cv2
import numpy as np
import pytest
import synthetic
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope

from mmlavit.analysis.trained import choose_pictures, load_trained, read_pictures
from mmlavit.apis.inference import build_model
from mmlavit.errors import UserError
from mmlavit.utils.config_files import load_config
from mmlavit.utils.toolbox import load_toolbox

CONFIG = Path(__file__).parents[2] / 'configs/handwritten/classify_lavit_nano.py'


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    load_toolbox('mmpretrain')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(load_config(str(CONFIG)).model)
    path = tmp_path_factory.mktemp('trained') / 'weights.pth'
    torch.save({f'module.{name}': value for name, value in model.state_dict().items()}, path)
    return str(path)


def test_other_number_of_classes(checkpoint):
    with pytest.raises(UserError, match=r'2 of another shape there \(head\.fc\.weight'):
        options = {'model.head.num_classes': 5, 'model.head.topk': 1}
        load_trained(str(CONFIG), checkpoint, options=options)


@pytest.mark.parametrize('device', ['cuda:99', 'gpu'])
def test_device_that_is_not_there(checkpoint, device):
    with pytest.raises(UserError, match=f'device {device} cannot be used'):
        load_trained(str(CONFIG), checkpoint, device)


def test_no_weights_are_fetched_that_are_replaced(checkpoint):
    """As timm's would be for ``pretrained=True``, which a LaViT does not take."""
    trained = load_trained(str(CONFIG), checkpoint, options={'model.backbone.pretrained': True})
    assert trained.cfg.model.backbone.pretrained and type(trained.model.backbone).__name__ == 'LaViT'


def test_weights_that_are_not_finite(checkpoint, tmp_path):
    weights = torch.load(checkpoint)
    weights['module.head.fc.bias'][3] = torch.nan
    torch.save(weights, tmp_path / 'nan.pth')
    with pytest.raises(UserError, match=r'nan.pth has numbers that are not finite \(head.fc.bias\): take an earlier'):
        load_trained(str(CONFIG), str(tmp_path / 'nan.pth'))


def test_padding_of_the_pipeline(checkpoint, tmp_path):
    """The point that maps are drawn for counts from the image, not from what it is padded to."""
    cv2.imwrite(str(tmp_path / 'a.png'), np.full((30, 40, 3), 200, np.uint8))
    steps = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(80, 60), keep_ratio=True),
        dict(type='Pad', size=(96, 96)),
        dict(type='PackInputs'),
    ]
    trained = load_trained(str(CONFIG), checkpoint, options={'test_dataloader.dataset.pipeline': steps})
    (picture,) = read_pictures(trained, [tmp_path / 'a.png'])
    assert picture.inner == (60, 80) and picture.whole == picture.pixels.shape[:2] == (96, 96)


def test_sliding_windows(checkpoint, tmp_path):
    """The backbone of such a segmentor never sees more than a window."""
    image = np.random.default_rng(0).integers(0, 256, (160, 200, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'a.png'), image)
    config = str(CONFIG.parents[1] / 'handwritten/upernet_lavit_nano.py')
    load_toolbox('mmseg')
    cfg = load_config(config)
    with DefaultScope.overwrite_default_scope('mmseg'):
        torch.save(MODELS.build(cfg.model).state_dict(), tmp_path / 'weights.pth')
    options = {'model.test_cfg': dict(mode='slide', crop_size=(64, 96), stride=(48, 64))}
    trained = load_trained(config, str(tmp_path / 'weights.pth'), options=options)
    (picture,) = read_pictures(trained, [tmp_path / 'a.png'])
    assert picture.whole == (160, 200) and picture.inner == (64, 96) and picture.inputs.shape == (1, 3, 64, 96)
    assert np.array_equal(picture.pixels, image[48:112, 52:148, ::-1])
    whole = trained.model.data_preprocessor(deepcopy(picture.data), False)['inputs']
    assert torch.equal(picture.inputs, whole[..., 48:112, 52:148])


def test_test_data_that_cannot_be_read(checkpoint, tmp_path):
    synthetic.write_handwritten(tmp_path)
    config = str(CONFIG.parents[1] / 'handwritten/mask_rcnn_lavit_nano.py')
    (file,) = tmp_path.glob('**/val.json')
    root = str(file.parents[1]) + '/'
    file.write_bytes(file.read_bytes()[:100])
    load_toolbox('mmdet')
    options = {'test_dataloader.dataset.data_root': root, 'test_evaluator.ann_file': str(file)}
    with pytest.raises(UserError, match='val.json is cut off or damaged'):
        choose_pictures(load_config(config, options), None, 1)


def test_broken_image(checkpoint, tmp_path):
    (tmp_path / 'a.png').write_text('no image')
    trained = load_trained(str(CONFIG), checkpoint)
    with pytest.raises(UserError, match='a.png cannot be read as an image'):
        next(read_pictures(trained, [tmp_path / 'a.png']))


def test_what_transforms_draw_by_labels(tmp_path, monkeypatch):
    """Images of the config's test are seen with it, others as they are."""
    synthetic.write_handwritten(tmp_path)
    monkeypatch.chdir(tmp_path)
    config = str(CONFIG.parents[1] / 'experiments/fpn_lavit_nano_framed.py')
    load_toolbox('mmseg')
    cfg = load_config(config)
    with DefaultScope.overwrite_default_scope('mmseg'):
        torch.save(MODELS.build(cfg.model).state_dict(), 'weights.pth')
    trained = load_trained(config, 'weights.pth')
    paths = choose_pictures(trained.cfg, None, 3)
    Path('other').mkdir()
    shutil.copy(paths[0], 'other/a.png')
    *own, other = read_pictures(trained, [*paths, Path('other/a.png')])
    changed = [np.any(picture.pixels[..., ::-1] != cv2.imread(str(picture.path)), axis=2).sum() for picture in own]
    assert any(changed)  # a scene of different digits has no frame
    assert np.array_equal(other.pixels[..., ::-1], cv2.imread('other/a.png'))


def test_wrapped_test_data(checkpoint, tmp_path):
    trained = load_trained(str(CONFIG), checkpoint)
    for label in range(10):
        (tmp_path / f'{label}').mkdir()
        cv2.imwrite(str(tmp_path / f'{label}/a.png'), np.full((40, 30, 3), label, np.uint8))
    plain = ConfigDict(trained.cfg.test_dataloader.dataset, data_root=str(tmp_path), data_prefix='', ann_file='')
    trained.cfg.test_dataloader.dataset = plain
    expected = choose_pictures(trained.cfg, None, 3)
    assert [path.parent.name for path in expected] == ['0', '4', '9']
    trained.cfg.test_dataloader.dataset = ConfigDict(type='ConcatDataset', datasets=[plain])
    assert choose_pictures(trained.cfg, None, 3) == expected
    (picture,) = read_pictures(trained, expected[:1])
    assert picture.inputs.shape[:2] == (1, 3)
    trained.cfg.test_dataloader = None
    with pytest.raises(UserError, match='the config has no test_dataloader'):
        choose_pictures(trained.cfg, None, 3)
    with pytest.raises(UserError, match='the config has no test_dataloader'):
        list(read_pictures(trained, expected[:1]))


def test_a_model_without_a_backbone_of_its_own(tmp_path, monkeypatch):
    """As mmdet's SoftTeacher, which has detectors inside."""
    load_toolbox('mmdet')
    cfg = load_config(str(CONFIG.parent / 'retinanet_lavit_nano.py'))
    inner = cfg.model
    preprocessor = dict(type='mmdet.MultiBranchDataPreprocessor', data_preprocessor=inner.data_preprocessor)
    cfg.model = ConfigDict(type='SoftTeacher', detector=inner, data_preprocessor=preprocessor, semi_train_cfg={})
    cfg.dump(str(tmp_path / 'semi.py'))
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.save(MODELS.build(deepcopy(cfg.model)).state_dict(), tmp_path / 'w.pth')
    with pytest.raises(UserError, match='^SoftTeacher has no backbone of its own; name the config of the model in it'):
        load_trained(str(tmp_path / 'semi.py'), str(tmp_path / 'w.pth'))
    with pytest.raises(UserError, match='^SoftTeacher has no backbone of its own: name the config of the detector'):
        build_model(cfg, str(tmp_path / 'w.pth'), 'cpu', 0.5)
