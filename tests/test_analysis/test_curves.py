"""The curves of trainings, drawn; how their logs are read is tested with analyze_logs.py."""

import json

import pytest
from matplotlib.figure import Figure
from PIL import Image

from mmlavit.analysis.curves import Curve, Log, Panel, draw_panels, make_panel
from mmlavit.errors import UserError

ROWS = [
    dict(loss=2.0, loss_diag=0.1, lr=0.1, epoch=1, iter=1, step=1),
    {'loss': 1.0, 'loss_diag': 0.1, 'decode.acc_seg': 9.0, 'lr': 0.1, 'epoch': 2, 'iter': 2, 'step': 2},
    {'mIoU': 40.0, 'time': 1.0, 'step': 2},
]


def test_log():
    log = Log(ROWS)
    assert log.keys(training=True) == ['loss', 'loss_diag', 'lr', 'decode.acc_seg']
    assert log.keys() == [*log.keys(training=True), 'mIoU', 'time']
    assert log.points('loss') == [(1, 2.0), (2, 1.0)]
    assert log.points('decode.acc_seg') == [(2, 9.0)]
    assert log.points('mIoU') == [(2, 40.0)]
    assert log.points('aAcc') == []
    assert (log.unit('loss'), log.unit('mIoU')) == ('iteration', 'epoch')
    by_iteration = [{key: value for key, value in row.items() if key != 'epoch'} for row in ROWS]
    assert Log(by_iteration).unit('mIoU') == 'iteration'


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn."""
    figures, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, 'savefig', lambda self, *args, **kw: figures.append(self) or savefig(self, *args, **kw))
    return figures


def test_panels(drawn, tmp_path):
    losses = [Curve(f'loss_{index}', [(1, 1.0), (100, 0.1)]) for index in range(7)]
    metrics = [Curve('box AP', [(4, 0.5), (8, 0.6)]), Curve('never logged', [])]
    panels = [Panel('loss', 'iteration', losses, log=True), Panel('validation', 'epoch', metrics, limits=(0, 1))]
    draw_panels([*panels, Panel('once', 'epoch', [Curve('x' * 80, [(3, 1.0)])])], tmp_path / 'new/curves.png')
    assert Image.open(tmp_path / 'new/curves.png').size == (1200, 960)
    (figure,) = drawn
    loss, validation, once, empty = figure.axes
    assert [text.get_text() for text in validation.get_legend().get_texts()] == ['box AP']
    assert not empty.axison
    for axes in (loss, validation, once):
        left, right = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if left <= tick <= right]
        assert ticks and all(tick == round(tick) for tick in ticks)  # no epoch 4.5
        legend, xlabel = axes.get_legend().get_window_extent(), axes.xaxis.label.get_window_extent()
        assert not legend.overlaps(axes.get_window_extent()) and not legend.overlaps(xlabel)


def test_names_as_they_are(drawn, tmp_path):
    """matplotlib would hide the first, and take the second for a formula that is wrong."""
    names = ['_old', 'a_$1_$2']
    draw_panels([Panel('x', 'epoch', [Curve(name, [(1, 1.0), (2, 2.0)]) for name in names])], tmp_path / 'a.png')
    (figure,) = drawn
    legend = figure.axes[0].get_legend().get_texts()
    assert [text.get_text().strip() for text in legend] == names


def test_a_curve_of_one_point(drawn, tmp_path):
    """A line would not be seen."""
    log = Log([dict(step=1, loss=1.0, lr=0.1)])
    draw_panels([make_panel('loss', ['a'], [log])], tmp_path / 'a.png')
    assert drawn[0].axes[0].lines[0].get_marker() == 'o'


def write_rows(folder, start, rows):
    path = folder / start / 'vis_data/scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def test_validations_without_a_step(tmp_path):
    """A LoggerHook of epochs in a training by iterations says 0 of them all."""
    rows = [dict(loss=1.0, lr=0.1, iter=50, step=50), dict(mIoU=1.0, step=0)]
    rows += [dict(loss=1.0, lr=0.1, iter=100, step=100), dict(mIoU=2.0, step=0)]
    write_rows(tmp_path, 'a', rows)
    log = Log.read(tmp_path)
    assert log.points('mIoU') == [(50, 1.0), (100, 2.0)] and log.unit('mIoU') == 'iteration'


def test_resumed_with_a_validation(tmp_path):
    """It is the first row of the second start, and belongs to the last step of the first."""
    write_rows(tmp_path, 'a', [dict(loss=1.0, lr=0.1, iter=step, step=step) for step in (50, 100)])
    write_rows(tmp_path, 'b', [dict(mIoU=1.0, step=0), dict(loss=1.0, lr=0.1, iter=150, step=150)])
    assert Log.read(tmp_path).points('mIoU') == [(100, 1.0)]


def test_files_that_are_no_logs(tmp_path):
    (tmp_path / 'a.pth').write_bytes(b'\x80\x02\xff')
    with pytest.raises(UserError, match='a.pth is not a log of scalars'):
        Log.read(tmp_path / 'a.pth')


def test_a_start_that_ended_in_its_first_row(tmp_path):
    """Killed, or on a full disk, while it wrote; the starts before it count."""
    write_rows(tmp_path, 'a', [dict(loss=1.0, lr=0.1, iter=step, step=step) for step in (50, 100)])
    write_rows(tmp_path, 'b', [])
    (tmp_path / 'b/vis_data/scalars.json').write_text('{"lr": 0.1, "lo')
    assert [step for step, _ in Log.read(tmp_path).points('loss')] == [50, 100]


@pytest.mark.parametrize(('later', 'kept'), [([50, 100, 150], []), ([30, 40, 50], [10, 20]), ([50], [10, 20, 30, 40])])
def test_work_dir_that_is_used_again(tmp_path, later, kept):
    """From the start with another interval, or where it was resumed."""
    for start, steps in (('a', [10, 20, 30, 40]), ('b', later)):
        write_rows(tmp_path, start, [dict(loss=1.0, lr=0.1, iter=step, step=step) for step in steps])
    assert [step for step, _ in Log.read(tmp_path).points('loss')] == [*kept, *later]


def test_resumed_with_a_longer_interval(tmp_path):
    """The first step of the second start may be as long as its interval; its config says that it was resumed."""
    for start, steps in (('a', [10, 20, 30, 40, 50]), ('b', [100, 200])):
        write_rows(tmp_path, start, [dict(loss=1.0, lr=0.1, iter=step, step=step) for step in steps])
    (tmp_path / 'b/vis_data/config.py').write_text("randomness = dict(seed=0)\nresume = True\nwork_dir = 'a'\n")
    assert [step for step, _ in Log.read(tmp_path).points('loss')] == [10, 20, 30, 40, 50, 100, 200]
