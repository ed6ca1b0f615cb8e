"""Sheets of pictures; what visualizers draw is tested with the tools."""

import numpy as np

from mmlavit.visualization.drawing import make_sheet


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


def test_titles():
    black = np.zeros((60, 90, 3), np.uint8)
    sheet = make_sheet([black, black], 2, ('one', 'two'))
    height = len(sheet) - len(make_sheet([black, black], 2))
    assert height > 20 and (sheet[height:] == make_sheet([black, black], 2)).all()
    assert (sheet[:height, :96] < 128).any() and (sheet[:height, 102:] < 128).any()  # a title above either
