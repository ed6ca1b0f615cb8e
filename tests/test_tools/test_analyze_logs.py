"""tools/analysis_tools/analyze_logs.py and the logs that the shipped configs write."""

import json
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import VISUALIZERS, init_default_scope
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tool_runs import call_tool

from mmlavit.analysis.curves import Log

ROOT = Path(__file__).parents[2]
BLUE, ORANGE = (31, 119, 180), (255, 127, 14)  # matplotlib's first colours


def write_run(folder, train, val=(), start='20260101_000000'):
    """Write the log of one start of a training: rows of (step, loss) and (epoch, metric), in order."""
    path = folder / start / 'vis_data/scalars.json'
    path.parent.mkdir(parents=True)
    rows = [
        dict(
            lr=0.1 / step, loss=loss, time=0.01 * step, data_time=0.001 * step, memory=step, epoch=1, iter=1, step=step
        )
        for step, loss in train
    ]
    rows += [{'accuracy/top1': value, 'time': 9.0, 'data_time': 9.0, 'step': step} for step, value in val]
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return path


@pytest.fixture
def analyze_logs(monkeypatch):
    """Run the script in this process."""

    def run(*args):
        call_tool(monkeypatch, 'analysis_tools/analyze_logs.py', *args)

    return run


def has_colour(picture, colour):
    return (np.abs(picture - np.array(colour)).max(axis=2) < 10).any()


def test_two_runs(analyze_logs, tmp_path, capsys):
    write_run(tmp_path / 'a', [(10, 3.0), (20, 2.0), (30, 1.0)], [(1, 50.0), (2, 60.0)])
    scalars = write_run(tmp_path / 'b', [(10, 4.0), (20, 3.0)])
    out = tmp_path / 'new/curves.png'
    analyze_logs(tmp_path / 'a', scalars, '--legend', 'first', 'second', '--out', out)
    said = capsys.readouterr().out
    # Without the first row: (0.2 + 0.3) / 2 and (0.02 + 0.03) / 2; validation does not count.
    (row,) = (line for line in said.splitlines() if 'first' in line)
    assert row.split() == ['first', '30', '0.2500', '0.0250', '30']
    assert f'loss, lr, accuracy/top1 -> {out}' in said
    picture = np.asarray(Image.open(out).convert('RGB')).astype(int)
    assert picture.shape[:2] == (2 * 480, 2 * 600)
    loss, accuracy = picture[:480, :600], picture[480:, :600]
    assert has_colour(loss, BLUE) and has_colour(loss, ORANGE)
    assert has_colour(accuracy, BLUE) and not has_colour(accuracy, ORANGE)  # the second was not validated
    assert (picture[520:, 640:] == 255).all()  # no fourth panel


def test_keys(analyze_logs, tmp_path, capsys):
    write_run(tmp_path / 'a', [(10, 3.0)], [(1, 50.0)])
    analyze_logs(tmp_path / 'a', '--keys', 'acc*', 'time', '--out', tmp_path / 'a.png')
    assert f'accuracy/top1, time -> {tmp_path / "a.png"}' in capsys.readouterr().out
    assert Image.open(tmp_path / 'a.png').size == (1200, 480)


def test_resumed_training(tmp_path):
    """Steps that a later start repeats are its own; what came before its checkpoint stays."""
    write_run(tmp_path, [(10, 3.0), (20, 2.0), (30, 9.0)], [(3, 9.0)])
    write_run(tmp_path, [(25, 1.5), (35, 1.0)], [(3, 70.0)], start='20260102_000000')
    log = Log.read(tmp_path)
    assert log.points('loss') == [(10, 3.0), (20, 2.0), (25, 1.5), (35, 1.0)]
    assert log.means()['time'] == pytest.approx((0.2 + 0.35) / 2)  # without the first row of each start
    assert log.points('accuracy/top1') == [(3, 70.0)]
    # Only the second start.
    assert Log.read(tmp_path / '20260102_000000').points('loss') == [(25, 1.5), (35, 1.0)]
    # Started anew in the same folder.
    write_run(tmp_path, [(10, 5.0)], start='20260103_000000')
    assert Log.read(tmp_path).points('loss') == [(10, 5.0)]
    assert Log.read(tmp_path).points('accuracy/top1') == []


def test_stopped_while_writing(tmp_path):
    path = write_run(tmp_path, [(10, 3.0), (20, 2.0)])
    path.write_text(path.read_text() + '{"lr": 0.1, "lo')
    assert Log.read(path).points('loss') == [(10, 3.0), (20, 2.0)]
    assert Log.read(path).means() == {'time': 0.2, 'data_time': 0.02, 'memory': 20}


@pytest.mark.parametrize('name', ['default_runtime_det.py', 'default_runtime_seg.py', 'default_runtime_cls.py'])
def test_shipped_runtime_logs_for_both(name, tmp_path):
    """The JSON that is read here and TensorBoard's events hold the same."""
    cfg = Config.fromfile(ROOT / 'configs/_base_' / name)
    init_default_scope(cfg.default_scope)
    visualizer = VISUALIZERS.build(dict(cfg.visualizer, save_dir=str(tmp_path / '20260101_000000'), name=name))
    for step in (1, 2, 3):
        visualizer.add_scalars(dict(lr=0.5, loss=1 / step), step=step)
    visualizer.close()
    points = Log.read(tmp_path).points('loss')
    assert points == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    events = EventAccumulator(str(tmp_path / '20260101_000000/vis_data')).Reload()
    assert np.allclose([(event.step, event.value) for event in events.Scalars('loss')], points)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['nowhere'], 'nowhere has no log of a training'),
        (['a', '--keys', 'mIuO'], "no log has 'mIuO'; expected some of: accuracy/top1, data_time, loss, lr"),
        (['notes.txt'], 'notes.txt is not a log of scalars (line 1)'),
        (['val.json'], 'val.json has no row of a training'),
        (['a', '--out', 'notes.txt/a.png'], 'cannot write to the folder notes.txt'),
    ],
)
def test_mistakes(args, message, analyze_logs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / 'a', [(10, 3.0)], [(1, 50.0)])
    (tmp_path / 'notes.txt').write_text('first\nsecond\n')
    (tmp_path / 'val.json').write_text('{"mIoU": 1.0, "step": 1}\n')
    with pytest.raises(SystemExit) as stopped:
        analyze_logs(*args)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: {message}') and error.count('\n') == 1


def test_format_of_a_figure(analyze_logs, capsys):
    with pytest.raises(SystemExit) as stopped:
        analyze_logs('a', '--out', 'curves.txt')
    assert stopped.value.code == 2
    message = 'error: argument --out: curves.txt: expected a file ending in .png, .pdf, .svg or .jpg\n'
    assert capsys.readouterr().err.endswith(message)
