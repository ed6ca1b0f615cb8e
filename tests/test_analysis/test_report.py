"""Curves, sheets and summaries."""

import json

import pytest
from PIL import Image

from mmlavit.analysis.report import (
    format_seconds,
    format_summary,
    make_sheet,
    newest,
    plot_curves,
    read_scalars,
)

ROWS = [
    dict(loss=2.0, loss_diag=0.1, lr=0.1, step=1),
    {'loss': 1.0, 'loss_diag': 0.1, 'decode.loss_ce': 0.5, 'decode.acc_seg': 9.0, 'lr': 0.1, 'step': 2},
    {'mIoU': 40.0, 'time': 1.0, 'step': 2},
]


@pytest.fixture
def scalars(tmp_path):
    path = tmp_path / 'scalars.json'
    path.write_text(''.join(json.dumps(row) + '\n' for row in ROWS))
    return path


def test_read_scalars(scalars):
    losses, scores = read_scalars(scalars, ['mIoU'])
    assert losses == {'loss': [(1, 2.0), (2, 1.0)], 'loss_diag': [(1, 0.1), (2, 0.1)], 'decode.loss_ce': [(2, 0.5)]}
    assert scores == {'mIoU': [(2, 40.0)]}


def test_plot_curves(scalars, tmp_path):
    plot_curves(scalars, {'mIoU': ('mean IoU', 100)}, tmp_path / 'curves.png', 'iteration')
    assert Image.open(tmp_path / 'curves.png').size == (1200, 480)


def test_make_sheet(tmp_path):
    paths = [tmp_path / f'{index}.png' for index in range(4)]
    for path, size in zip(paths, [(20, 10), (20, 10), (40, 20), (20, 10)]):
        Image.new('RGB', size, 'red').save(path)
    make_sheet(paths, tmp_path / 'sheet.png', columns=3)
    sheet = Image.open(tmp_path / 'sheet.png')
    assert sheet.size == (3 * 20 + 2 * 6, 2 * 10 + 6)
    assert sheet.getpixel((0, 0)) == (255, 0, 0)
    assert sheet.getpixel((71, 25)) == (255, 255, 255)  # nothing in the last corner
    make_sheet(paths[:1], tmp_path / 'one.png')
    assert Image.open(tmp_path / 'one.png').size == (20, 10)


def test_newest(tmp_path):
    for name in ('20250101_000000', '20260101_000000'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'a.log').touch()
    assert newest(tmp_path, '2*/a.log').parent.name == '20260101_000000'
    with pytest.raises(FileNotFoundError, match='b.log'):
        newest(tmp_path, '2*/b.log')


def test_texts():
    assert [format_seconds(s) for s in (0.2, 59.4, 59.6, 303)] == ['0 s', '59 s', '1 min 00 s', '5 min 03 s']
    assert format_summary('Title', {'a': 0.12345, 'long name': 'x'}) == ('Title\n-----\na          0.123\nlong name  x')
