"""Images that are decoded once, against mmpretrain's own loading, and crops against a literal loop."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, DefaultScope
from torch.utils.data import DataLoader

from mmlavit.datasets.decoded import CroppingDataPreprocessor, DecodedImages, keep_batch, random_resized_crop
from mmlavit.datasets.guard import guard_dataset
from mmlavit.datasets.teacher_scores import TeacherScores
from mmlavit.engine.loader import ResumableLoader
from mmlavit.errors import ConfigError, DataError

LOAD = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(24, 20), interpolation='bicubic')]


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.fixture
def folder(tmp_path):
    """Three classes of two images each, of several sizes."""
    random = np.random.default_rng(0)
    for label in 'abc':
        (tmp_path / 'images' / label).mkdir(parents=True)
        for i in range(2):
            image = random.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / 'images' / label / f'{i}.png'), image)
    return tmp_path


def build(folder, **kwargs):
    arguments = dict(data_root=str(folder / 'images'), pipeline=LOAD, cache=str(folder / 'cache'))
    return DecodedImages(**{**arguments, **kwargs})


def test_batches_are_what_the_pipeline_gives(folder):
    plain = DATASETS.build(dict(type='CustomDataset', data_root=str(folder / 'images'), pipeline=LOAD))
    for _ in range(2):  # decoded, and read from the file
        loader = DataLoader(build(folder), batch_size=4, collate_fn=keep_batch)
        found = [(image, sample) for batch in loader for image, sample in zip(batch['inputs'], batch['data_samples'])]
        assert len(found) == len(plain) == 6
        for (image, sample), wanted in zip(found, plain, strict=True):
            np.testing.assert_array_equal(image.permute(1, 2, 0), wanted['img'])
            assert sample.gt_label.tolist() == [wanted['gt_label']]
    assert len(list((folder / 'cache').iterdir())) == 1


def test_labels_that_no_class_has(folder):
    """Also where the images are there already, and none is loaded."""
    names = [str(path.relative_to(folder / 'images')) for path in sorted(folder.glob('images/*/*.png'))]
    for last, good in ((2, True), (3, False)):
        lines = [f'{name} {label}' for name, label in zip(names, (0, 0, 1, 1, last, last))]
        (folder / 'list.txt').write_text('\n'.join(lines))
        dataset = build(folder, ann_file=str(folder / 'list.txt'), metainfo=dict(classes=('a', 'b', 'c')))
        guard_dataset(dataset, None, None)
        if good:
            dataset[0]
        else:
            with pytest.raises(DataError, match='c/0.png has the label 3, but the model has classes 0 to 2'):
                dataset[0]


def test_another_list_or_pipeline_is_decoded_anew(folder):
    build(folder)[0]
    build(folder, pipeline=[LOAD[0], dict(type='Resize', scale=(8, 8))])[0]
    (folder / 'images/a/0.png').unlink()
    assert build(folder)[0]['inputs'].shape == (1, 3, 20, 24)
    assert len(list((folder / 'cache').iterdir())) == 3
    from mmcv.transforms import LoadImageFromFile

    build(folder, pipeline=[dict(type=LoadImageFromFile), LOAD[1]])[0]  # a config in pure Python
    assert len(list((folder / 'cache').iterdir())) == 4


def test_targets_of_a_teacher(folder):
    names = sorted(str(path.relative_to(folder / 'images')) for path in folder.glob('images/*/*.png'))
    TeacherScores(names, np.zeros((6, 3))).save(folder / 'scores.npz')
    teacher = dict(type='AddTeacherScores', file=str(folder / 'scores.npz'), root=str(folder / 'images'))
    sample = build(folder, targets=[teacher]).__getitems__([3])['data_samples'][0]
    np.testing.assert_allclose(sample.gt_score, [1 / 6, 4 / 6, 1 / 6], rtol=1e-6)


def test_sizes_must_agree(folder):
    with pytest.raises(DataError, match='needs images of one size.*add a Resize'):
        build(folder, pipeline=LOAD[:1])[0]


def test_workers_are_refused(folder):
    loader = DataLoader(build(folder), batch_size=2, num_workers=1, collate_fn=keep_batch)
    with pytest.raises(ConfigError, match='needs num_workers=0'):
        next(iter(loader))


@pytest.mark.parametrize('amp', [False, True], ids=['float32', 'autocast'])
def test_crops(monkeypatch, amp):
    """Each pixel of a crop is the image at the place that the drawn box says, bilinearly."""
    draws = torch.tensor([[0.3, 1.0], [0.2, 0.9], [0.5, 0.0], [0.1, 1.0], [0.4, 0.6]])
    monkeypatch.setattr(torch, 'rand', lambda *args, **kwargs: draws)
    rows, columns = torch.meshgrid(torch.arange(30.0), torch.arange(20.0), indexing='ij')
    image = torch.stack([rows, columns])  # a pixel says where it is
    with torch.autocast('cpu', torch.bfloat16, enabled=amp):
        crops = random_resized_crop(torch.stack([image, image]), 8, (0.2, 0.6))
    for crop, (area, aspect, across, down, mirror) in zip(crops, draws.T.tolist(), strict=True):
        area = (0.2 + 0.4 * area) * 30 * 20
        ratio = (3 / 4) * (16 / 9) ** aspect  # width to height, in pixels
        width, height = min((area * ratio) ** 0.5, 20), min((area / ratio) ** 0.5, 30)
        left, top = across * (20 - width), down * (30 - height)
        for i in range(8):
            for j in range(8):
                along = 7 - j if mirror < 0.5 else j
                y = min(max(top + height * (i + 0.5) / 8 - 0.5, 0), 29)
                x = min(max(left + width * (along + 0.5) / 8 - 0.5, 0), 19)
                torch.testing.assert_close(crop[:, i, j], torch.tensor([y, x]), rtol=1e-4, atol=1e-3)


def test_preprocessor_crops_in_training_only():
    preprocessor = CroppingDataPreprocessor(16, (0.3, 1.0), mean=[1.0] * 3, std=[2.0] * 3, to_rgb=True)
    images = torch.randint(0, 256, (2, 3, 20, 24), dtype=torch.uint8)
    tested = preprocessor(dict(inputs=images))['inputs']
    torch.testing.assert_close(tested, (images.flip(1).float() - 1) / 2)
    trained = preprocessor(dict(inputs=images), training=True)['inputs']
    assert trained.shape == (2, 3, 16, 16)
    assert trained.min() >= -0.5 and trained.max() <= 127


def test_a_size_for_each_batch():
    preprocessor = CroppingDataPreprocessor((16, 24), (0.3, 1.0))
    batch = dict(inputs=torch.zeros(2, 3, 20, 24, dtype=torch.uint8))
    assert {preprocessor(batch, training=True)['inputs'].shape[2:] for _ in range(20)} == {(16, 16), (24, 24)}


def test_exact_resume_and_the_names_of_files(folder):
    plain = DataLoader(build(folder), batch_size=4, collate_fn=keep_batch)
    loader = ResumableLoader(DataLoader(build(folder), batch_size=4, collate_fn=keep_batch), seed=0)
    loader.start(0, 1)
    (batch,) = loader
    *_, wanted = plain
    assert torch.equal(batch['inputs'], wanted['inputs'])
    assert [sample.img_path[-7:] for sample in batch['data_samples']] == ['c/0.png', 'c/1.png']
    assert loader.dataset[0]['inputs'].shape == (1, 3, 20, 24)
