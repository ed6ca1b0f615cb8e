"""Sheets of pictures; what visualizers draw is tested with the tools."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData

from mmlavit.errors import UserError
from mmlavit.utils.toolbox import load_toolbox
from mmlavit.visualization.drawing import build_visualizer, draw_annotations, make_sheet, write_picture
from mmlavit.visualization.video import write_video


def test_make_sheet():
    red, blue = np.zeros((10, 20, 3), np.uint8), np.zeros((20, 40, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    sheet = make_sheet([red, red, red, blue], columns=3)
    assert sheet.shape == (2 * 10 + 3 * 6, 3 * 20 + 4 * 6, 3)
    assert sheet.dtype == np.uint8
    tiles = {
        (row, column): sheet[6 + 16 * row :, 6 + 26 * column :][:10, :20] for row in (0, 1) for column in (0, 1, 2)
    }
    assert (tiles[0, 2] == red).all()
    assert (tiles[1, 0] == [0, 0, 255]).all()
    assert (tiles[1, 1] == 255).all()  # nothing after the last
    assert (sheet[:6] == 255).all()
    assert make_sheet([red]).shape == red.shape


@pytest.mark.parametrize(('name', 'size'), [('a.pgm', (9, 9)), ('a.webp', (1, 17000)), ('a.unknown', (9, 9))])
def test_what_opencv_cannot_write(tmp_path, name, size):
    with pytest.raises(UserError, match=f'cannot be written: OpenCV makes no .*{size[0]}x{size[1]}'):
        write_picture(tmp_path / name, np.zeros((*size, 3), np.uint8))


@pytest.mark.parametrize('fps', [5, 29.97, 239.763])
def test_video_of_any_rate(tmp_path, fps):
    with write_video(tmp_path / 'a.mp4', fps, 64, 48) as write:
        write(np.zeros((48, 64, 3), np.uint8))
    assert cv2.VideoCapture(str(tmp_path / 'a.mp4')).get(cv2.CAP_PROP_FPS) == pytest.approx(fps, abs=0.1)


def test_maps_beside_boxes():
    """As mmdet packs them for panoptic detectors."""
    load_toolbox('mmdet')
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes

    sample = DetDataSample(gt_sem_seg=PixelData(sem_seg=torch.zeros(1, 20, 30, dtype=torch.uint8)))
    boxes, labels = HorizontalBoxes(torch.tensor([[2.0, 3, 12, 14]])), torch.tensor([0])
    sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
    with DefaultScope.overwrite_default_scope('mmdet'):
        visualizer = build_visualizer('mmdet', dict(classes=('a',), palette=[(255, 0, 0)]))
        drawn = draw_annotations(visualizer, np.zeros((20, 30, 3), np.uint8), sample, enlarge=2)
    assert (
        drawn.shape == (40, 60, 3)
        and (drawn[6:28, 4:24] != drawn[35, 50]).any()
        and (drawn[32:] == drawn[35, 50]).all()
    )
    assert sample.gt_instances.bboxes.tensor.tolist() == [[2, 3, 12, 14]]


def test_gray():
    load_toolbox('mmpretrain')
    from mmpretrain.structures import DataSample

    image = np.random.default_rng(0).integers(0, 256, (20, 30, 1), np.uint8)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        visualizer = build_visualizer('mmpretrain', dict(classes=('a',)))
        drawn = [
            draw_annotations(visualizer, picture, DataSample().set_gt_label(0), enlarge=2)
            for picture in (image, image.repeat(3, axis=2))
        ]
        np.testing.assert_array_equal(*drawn)
        with pytest.raises(UserError, match='images of 4 channels cannot be drawn'):
            draw_annotations(visualizer, image.repeat(4, axis=2), DataSample().set_gt_label(0))


def test_titles():
    black = np.zeros((60, 90, 3), np.uint8)
    sheet = make_sheet([black, black], 2, ('one', 'two'))
    height = len(sheet) - len(make_sheet([black, black], 2))
    assert height > 20 and (sheet[height:] == make_sheet([black, black], 2)).all()
    assert (sheet[:height, :96] < 128).any() and (sheet[:height, 102:] < 128).any()  # a title above either


def test_frames_of_another_size(tmp_path):
    """As of a screen that was turned while it was recorded."""
    with write_video(tmp_path / 'a.mp4', 5, 64, 48) as write:
        for shape in ((48, 64, 3), (64, 48, 3), (48, 64, 3)):
            write(np.full(shape, 200, np.uint8))
    capture = cv2.VideoCapture(str(tmp_path / 'a.mp4'))
    frames = [frame for there, frame in (capture.read() for _ in range(4)) if there]
    assert len(frames) == 3 and all(frame.shape == (48, 64, 3) and frame.mean() > 150 for frame in frames)
