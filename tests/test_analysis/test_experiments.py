"""Experiments: what is run, in which order, what is not run again, and what the report says."""

import argparse
import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from documents import ROOT
from mmengine.config import DictAction
from scipy import stats
from shell_commands import check
from tool_runs import call_tool, run_tool

from mmlavit.analysis.experiments import report, runs
from mmlavit.analysis.experiments.plan import Plan
from mmlavit.analysis.experiments.report import Benchmark, draw_times, interval, summarise, write_report
from mmlavit.analysis.experiments.runs import read_results, run_plan
from mmlavit.errors import UserError
from mmlavit.utils.config_files import load_config

PLANS = sorted((ROOT / 'configs/experiments/plans').glob('*.py'))
# Writes a log as mmengine does, of validations whose values depend on the arm and the seed.
STEP = """
import json, sys
from pathlib import Path
folder, seed, base = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
log = folder / '20260101_000000/vis_data/20260101_000000.json'
log.parent.mkdir(parents=True)
rows = [dict(lr=0.1, loss=1.0, step=10), dict(mIoU=base, step=10), dict(mIoU=base + seed ** 2, step=20)]
log.write_text(''.join(json.dumps(row) + chr(10) for row in rows))
(log.parent / 'scalars.json').write_text(log.read_text())
with open(folder.parents[2] / 'order.txt', 'a') as order:
    order.write(f'{folder.parent.parent.name} {seed}' + chr(10))
"""


def write_plan(folder, arms, **changes):
    (folder / 'step.py').write_text(STEP)
    plan = dict(title='A and B', metric='mIoU', scale=10, digits=1, seeds=[0, 1, 2], reference='a')
    plan.update({'columns': dict(train='mIoU'), 'arms': arms} | changes)
    path = folder / 'plan.py'
    path.write_text('\n'.join(f'{key} = {value!r}' for key, value in plan.items() if value is not None))
    return path


def arm(folder, base, **kwargs):
    command = f'python {folder / "step.py"} {{work_dir}} {{seed}} {base}'
    return dict(title=f'arm {base}', commands=dict(train=command), **kwargs)


@pytest.fixture
def plan(tmp_path):
    arms = dict(a=arm(tmp_path, 1), b=arm(tmp_path, 2, needs=['a']), c=arm(tmp_path, 4, seeds=[5], needs=['b']))
    return Plan.read(str(write_plan(tmp_path, arms)))


@pytest.mark.parametrize('jobs', [1, 3])
def test_run(plan, tmp_path, jobs):
    root = tmp_path / 'runs'
    run_plan(plan, plan.choose([]), root, jobs)
    order = (root / 'order.txt').read_text().split('\n')[:-1]
    assert sorted(order) == sorted(['a 0', 'a 1', 'a 2', 'b 0', 'b 1', 'b 2', 'c 5'])
    assert [line[0] for line in order] == list('aaabbbc')  # each after what it needs
    record = json.loads((root / 'b/seed_1/train/done.json').read_text())
    assert record['plan'] == f'python {tmp_path}/step.py b/seed_1/train 1 2'

    run_plan(plan, plan.choose([]), root, jobs)  # what has ended well is not run again
    assert (root / 'order.txt').read_text().split('\n')[:-1] == order


def test_who_waits_keeps_nobody_from_starting(tmp_path):
    arms = dict(a=arm(tmp_path, 1), b=arm(tmp_path, 2, needs=['a']), c=arm(tmp_path, 3))
    plan = Plan.read(str(write_plan(tmp_path, arms)))
    run_plan(plan, plan.choose([], [0]), tmp_path / 'runs')
    assert (tmp_path / 'runs/order.txt').read_text().split('\n')[:-1] == ['a 0', 'c 0', 'b 0']


def test_arms_share_commands_and_names(tmp_path):
    """What an arm says goes before what the plan says."""
    arms = dict(a=dict(title='A {size}'), b=dict(title='B {size}', names=dict(size=3)), c=arm(tmp_path, 3))
    commands = dict(train='echo {size} {word} {arm} {seed}')
    plan = Plan.read(str(write_plan(tmp_path, arms, commands=commands, names=dict(size=2, word='x/{seed}'))))
    assert [arm.title for arm in plan.arms] == ['A 2', 'B 3', 'arm 3']
    first, second, own = (plan.command(arm, 'train', 1, tmp_path) for arm in plan.arms)
    assert (first, second) == ('echo 2 x/1 a 1', 'echo 3 x/1 b 1')
    assert own.startswith(f'python {tmp_path}/step.py')


def test_run_chosen_seeds(plan, tmp_path):
    root = tmp_path / 'runs'
    run_plan(plan, plan.choose(['b'], [1]), root)
    run_plan(plan, plan.choose(['b', 'c'], [2]), root)  # c has only a seed of its own
    assert (root / 'order.txt').read_text().split('\n')[:-1] == ['a 1', 'b 1', 'a 2', 'b 2', 'c 5']
    assert summarise(plan, root)['b']['train'].values == {1: 30, 2: 60}


def test_report(plan, tmp_path):
    root = tmp_path / 'runs'
    run_plan(plan, plan.choose(['b']), root, conditions='CONDITIONS')
    values = {'a': [10, 20, 50], 'b': [20, 30, 60]}  # scale * (base + seed ** 2)
    found = summarise(plan, root)
    assert {name: list(found[name]['train'].values.values()) for name in values} == values
    assert found['b']['train'].difference == {0: 10, 1: 10, 2: 10}
    assert found['c'] == {}

    write_report(plan, root, tmp_path / 'report', 'COMMAND')
    text = (tmp_path / 'report/report.md').read_text()
    width = 26.6667 - stats.t.interval(0.95, 2, loc=26.6667, scale=stats.sem(values['a']))[0]
    assert f'| arm 1 | 26.7 ± {width:.1f} (10.0, 20.0, 50.0) |  |' in text
    assert '| arm 2 | 36.7 ± ' in text and '| +10.0 ± 0.0 |' in text and 'arm 4' not in text
    assert 'COMMAND' in text and 'CONDITIONS' in text
    assert json.loads((tmp_path / 'report/report.json').read_text())['values']['a']['train'] == {
        '0': 10, '1': 20, '2': 50
    }  # fmt: skip
    assert sum(json.loads((tmp_path / 'report/report.json').read_text())['curves']['arm 1'], []) == pytest.approx(
        [10, 10, 20, 80 / 3]
    )
    assert (tmp_path / 'report/curves.png').stat().st_size > 1000


def test_one_run_of_the_reference(tmp_path):
    """Then all are compared with it."""
    plan = Plan.read(str(write_plan(tmp_path, dict(a=arm(tmp_path, 1, seeds=[7]), b=arm(tmp_path, 2)))))
    run_plan(plan, plan.choose([]), tmp_path / 'runs')
    assert summarise(plan, tmp_path / 'runs')['b']['train'].difference == {0: 20 - 500, 1: 30 - 500, 2: 60 - 500}
    write_report(plan, tmp_path / 'runs', tmp_path, 'COMMAND')
    text = (tmp_path / 'report.md').read_text()
    assert '(20.0, 30.0, 60.0) | -463.3 |' in text and 'they have no interval' in text


def test_a_refusal_leaves_the_report(tmp_path, monkeypatch, capsys):
    path = write_plan(tmp_path, dict(a=arm(tmp_path, 1)))
    options = ('--work-dir', tmp_path / 'runs', '--out-dir', tmp_path / 'out')
    call_tool(monkeypatch, 'analysis_tools/run_experiment.py', path, *options)
    before = (tmp_path / 'out/report.md').read_text()
    write_plan(tmp_path, dict(a=arm(tmp_path, 2)))
    assert run_tool(monkeypatch, 'analysis_tools/run_experiment.py', path, *options) == 2
    assert 'was made by another command than the plan has now' in capsys.readouterr().err
    assert run_tool(monkeypatch, 'analysis_tools/run_experiment.py', path, *options, '--times', 'none.json') == 2
    assert 'none.json is no report.json of benchmark.py' in capsys.readouterr().err  # before anything is run
    assert (tmp_path / 'out/report.md').read_text() == before


def test_space_in_quotes(tmp_path):
    arms = dict(a=dict(title='A', commands=dict(train='python  -c\n "print(1)  # x"  {work_dir}')))
    plan = Plan.read(str(write_plan(tmp_path, arms)))
    wanted = 'python -c "print(1)  # x" \'/my  runs/a/seed_0/train\''
    assert plan.command(plan.arms[0], 'train', 0, Path('/my  runs')) == wanted


def test_one_run_of_three_of_the_reference(tmp_path):
    """The others are still to come, and are not compared with it."""
    plan = Plan.read(str(write_plan(tmp_path, dict(a=arm(tmp_path, 1), b=arm(tmp_path, 2)))))
    run_plan(plan, plan.choose(['a'], [1]), tmp_path / 'runs')
    run_plan(plan, plan.choose(['b']), tmp_path / 'runs')
    assert summarise(plan, tmp_path / 'runs')['b']['train'].difference == {1: 10}


def test_a_changed_plan(tmp_path):
    """Results of a command that the plan no longer has are not shown as those of another, wherever they lie now."""
    plan = Plan.read(str(write_plan(tmp_path, dict(a=arm(tmp_path, 1)))))
    run_plan(plan, plan.choose([], [1]), tmp_path / 'runs')
    moved = tmp_path / 'moved runs'
    (tmp_path / 'runs').rename(moved)
    run_plan(plan, plan.choose([], [2]), moved)
    assert summarise(plan, moved)['a']['train'].values == {1: 20, 2: 50}
    changed = Plan.read(str(write_plan(tmp_path, dict(a=arm(tmp_path, 9)))))
    with pytest.raises(UserError, match='a/seed_1/train was made by another command than the plan has now'):
        run_plan(changed, changed.choose([], [0, 1]), moved)
    assert not (moved / 'a/seed_0').exists()  # found before anything starts
    assert summarise(changed, moved) == {'a': {}}
    write_report(changed, moved, moved, 'command')
    assert (
        'Left out, since the plan was changed after they had run, or what they read has been made anew or removed: '
        'a/seed_1/train, a/seed_2/train.' in (moved / 'report.md').read_text()
    )


@pytest.fixture
def chain(tmp_path):
    """A teacher, and a student of it that is trained and tested."""
    step = f'python {tmp_path / "step.py"} {{work_dir}} {{seed}}'
    student = dict(
        train=f'{step} 2 {{root}}/teacher/seed_0/train/last.pth',
        train_2=f'{step} 3',
        test=f'{step} 4 {{run}}/train/x.pth',
    )
    arms = dict(
        teacher=arm(tmp_path, 1, seeds=[0, 1]), student=dict(title='S', seeds=[1], needs=['teacher'], commands=student)
    )
    plan = Plan.read(str(write_plan(tmp_path, arms, columns=dict(train='mIoU', test='test'), reference='teacher')))
    root = tmp_path / 'runs'
    run_plan(plan, plan.arms, root)
    return plan, root


def remake(plan, root, name):
    (root / name).rename(root.with_name('old'))
    run_plan(plan, plan.choose(['teacher']), root)


def test_results_of_a_teacher_that_was_trained_anew(chain):
    plan, root = chain
    run_plan(plan, plan.arms, root)  # nothing to do
    remake(plan, root, 'teacher/seed_0')
    both = f'remove {root}/student/seed_1/train, {root}/student/seed_1/test, or undo'
    with pytest.raises(
        UserError, match=f'student/seed_1/train was made from what is no longer in {root}/teacher/seed_0/train; {both}'
    ):
        run_plan(plan, plan.arms, root)
    assert summarise(plan, root)['student'] == {}
    write_report(plan, root, root, 'command')
    assert 'removed: student/seed_1/train, student/seed_1/test.' in (root / 'report.md').read_text()


def test_results_of_what_was_removed(chain):
    plan, root = chain
    (root / 'student/seed_1/train').rename(root.with_name('old'))
    with pytest.raises(UserError, match=f'student/seed_1/test was made from .*; remove {root}/student/seed_1/test, or'):
        run_plan(plan, plan.arms, root)
    assert [line.split()[0] for line in (root / 'order.txt').read_text().splitlines()].count('student') == 3


def test_results_that_nothing_reads_may_change(chain):
    """The student reads the teacher of seed 0; another seed is another matter."""
    plan, root = chain
    remake(plan, root, 'teacher/seed_1')
    run_plan(plan, plan.arms, root)
    assert set(summarise(plan, root)['student']) == {'train', 'test'}


def test_results_of_earlier_versions(chain):
    """They have not noted what they read."""
    plan, root = chain
    for file in root.glob('*/*/*/done.json'):
        record = json.loads(file.read_text())
        del record['id'], record['sources']
        file.write_text(json.dumps(record))
    run_plan(plan, plan.arms, root)
    assert set(summarise(plan, root)['student']) == {'train', 'test'}


@pytest.mark.parametrize('quote', ['', '"'])
def test_what_another_plan_makes(tmp_path, monkeypatch, quote):
    """Without it, the message says how to make it; made anew, what was made from it is no longer valid."""
    monkeypatch.chdir(tmp_path)
    other = Plan.read(str(write_plan(tmp_path, dict(a=arm(tmp_path, 1)))))
    other = replace(other, name='first')
    file = 'work_dirs/experiments/first/a/seed_0/train/20260101_000000/vis_data/scalars.json'
    command = f'python {tmp_path / "step.py"} {{work_dir}} {{seed}} 2 {quote}{file}{quote}'
    second = Plan.read(str(write_plan(tmp_path, dict(b=dict(title='B', commands=dict(train=command))), reference='b')))
    root, second_root = Path('work_dirs/experiments/first'), Path('work_dirs/experiments/second')
    message = (
        f'^{file} does not exist; the plan first makes it: run_experiment.py configs/.*/first.py --arms a --seeds 0'
    )
    with pytest.raises(UserError, match=message):
        run_plan(second, second.arms, second_root)
    assert not second_root.exists()
    run_plan(other, other.arms, root)
    for _ in range(2):
        run_plan(second, second.arms, second_root)
    (root / 'a/seed_0').rename('old')
    run_plan(second, second.arms, second_root)  # what has ended does not need it
    run_plan(other, other.arms, root)
    with pytest.raises(UserError, match='b/seed_0/train was made from what is no longer in .*/first/a/seed_0'):
        run_plan(second, second.arms, second_root)


def test_an_interrupted_command_of_a_changed_plan(tmp_path):
    """It is not gone on with under other options."""
    arms = [dict(a=dict(title='A', commands=dict(train=f'python -c "raise SystemExit({n})"'))) for n in (1, 2)]
    plans = [Plan.read(str(write_plan(tmp_path, some))) for some in arms]
    for plan, message in zip(plans, ('exit code 1', 'a/seed_0/train was made by another command')):
        with pytest.raises(UserError, match=message):
            run_plan(plan, plan.arms, tmp_path / 'runs')


def test_metric_that_is_not_logged(tmp_path):
    path = write_plan(tmp_path, dict(a=arm(tmp_path, 1)))
    path.write_text(path.read_text().replace("metric = 'mIoU'", "metric = 'mIou'"))
    plan = Plan.read(str(path))
    for _ in range(2):  # it does not count as done
        with pytest.raises(UserError, match='a/seed_0/train has no mIou in its logs; what they have .*: mIoU'):
            run_plan(plan, plan.arms, tmp_path / 'runs')


def test_nothing_found(tmp_path):
    """Where a detector finds nothing, mmdet logs no AP."""
    log = tmp_path / 'a/vis_data/1.json'
    log.parent.mkdir(parents=True)
    rows = [dict(lr=0.1, step=1), {'coco/bbox_mAP': 0.3, 'step': 1}, dict(lr=0.1, step=2), dict(time=1, step=2)]
    log.write_text('\n'.join(map(json.dumps, rows)))
    assert read_results(tmp_path, 'coco/bbox_mAP') == [(1, 0.3), (2, 0)]
    assert read_results(tmp_path, 'coco/segm_mAP') == [(2, 0)]  # of masks nothing is known at the first
    assert read_results(tmp_path, 'mIoU') == []
    rows[-1] = {'coco/bbox_mAP': 0.4, 'step': 2}
    log.write_text('\n'.join(map(json.dumps, rows)))
    assert read_results(tmp_path, 'coco/segm_mAP') == []  # a wrong name is not 0


def test_killed(tmp_path):
    """What it has started is told to stop; while it still runs, nothing else starts in its folder."""
    wait = f"import pathlib, time; pathlib.Path('{tmp_path}/begun').touch(); time.sleep(60)"
    arms = dict(a=dict(title='A', commands=dict(train=f'python -c "{wait}" {{work_dir}}'), seeds=[0]))
    tool = [sys.executable, ROOT / 'tools/analysis_tools/run_experiment.py', write_plan(tmp_path, arms)]
    plan = Plan.read(str(tool[2]))
    process = subprocess.Popen([*tool, '--work-dir', tmp_path / 'runs'], stderr=subprocess.PIPE, text=True)
    while not (tmp_path / 'begun').exists():
        assert process.poll() is None
        time.sleep(0.1)
    with pytest.raises(UserError, match='another process is at work in .*a/seed_0/train'):
        run_plan(plan, plan.arms, tmp_path / 'runs')
    process.terminate()
    assert process.wait(30) == 128 + 15
    assert 'Nothing that gives a result' in (tmp_path / 'runs/report.md').read_text()


def measured(file, times):
    """As benchmark.py writes it."""
    results = [dict(backbone=name, median_s=seconds) for name, seconds in times.items()]
    comparison = dict(input=dict(batch=2, height=64, width=96), results=results)
    file.write_text(json.dumps(dict(settings=dict(mode='train'), comparisons=[comparison])))


def test_results_against_time(tmp_path, monkeypatch):
    """A point for each seed of an arm, at the time of the config in its command."""
    arms = {name: arm(tmp_path, base) for name, base in (('a', 1), ('b', 2), ('c', 4))}
    for name in ('a', 'b'):
        arms[name]['commands'] = {'train': f'{arms[name]["commands"]["train"]} configs/{name}_lavit.py'}
    plan = Plan.read(str(write_plan(tmp_path, arms)))
    run_plan(plan, plan.choose([]), tmp_path / 'runs')
    measured(tmp_path / 'report.json', dict(a_lavit=0.5, b_lavit=0.25, other=0.1))
    seen = []
    monkeypatch.setattr(report, 'draw_panels', lambda panels, file: seen.extend(panels))
    draw_times(plan, tmp_path / 'runs', [Benchmark.read(tmp_path / 'report.json')], tmp_path / 'times.png')
    (panel,) = seen
    assert panel.unit == 'time of the backbone, ms (train, 2x64x96)'
    assert {curve.name: curve.points for curve in panel.curves} == {
        'arm 1': [(500.0, 10.0), (500.0, 20.0), (500.0, 50.0)],
        'arm 2': [(250.0, 20.0), (250.0, 30.0), (250.0, 60.0)],
    }


def test_times_that_do_not_fit(plan, tmp_path):
    run_plan(plan, plan.choose(['a']), tmp_path / 'runs')
    measured(tmp_path / 'report.json', dict(lavit_s=0.5))
    with pytest.raises(UserError, match=r'report.json has the config of no arm with results; it has lavit_s'):
        draw_times(plan, tmp_path / 'runs', [Benchmark.read(tmp_path / 'report.json')], tmp_path / 'times.png')
    with pytest.raises(UserError, match=r'plan.py is no report.json of benchmark.py'):
        Benchmark.read(tmp_path / 'plan.py')


def test_interval():
    assert interval([3.0]) is None
    assert interval([1.0, 2.0, 4.0]) == pytest.approx(4.303 * stats.sem([1, 2, 4]), rel=1e-3)  # a table of t


def test_failure(tmp_path):
    """It names the command and shows its last line; what it had logged is no result; then it can go on."""
    arms = dict(a=dict(title='A', commands=dict(train='python -c "raise SystemExit(\'out of milk\')"')))
    plan = Plan.read(str(write_plan(tmp_path, arms)))
    with pytest.raises(UserError, match='exit code 1 from: python -c .*\nout of milk\n.*output.txt'):
        run_plan(plan, plan.arms, tmp_path / 'runs')
    assert summarise(plan, tmp_path / 'runs') == {'a': {}}
    # The other seeds were not started.
    assert [path.parent.name for path in (tmp_path / 'runs').glob('*/*/train')] == ['seed_0']
    write_report(plan, tmp_path / 'runs', tmp_path / 'out', 'command')
    assert 'Nothing that gives a result has ended yet.' in (tmp_path / 'out/report.md').read_text()


def test_failure_beside_what_still_runs(tmp_path, capsys):
    """It is said at once."""
    said = tmp_path / 'said'
    waiting = f"import pathlib, time; [time.sleep(0.05) for _ in range(400) if not pathlib.Path('{said}').exists()]"
    arms = {
        'a': dict(title='A', seeds=[0], commands=dict(train='python -c "raise SystemExit(\'out of milk\')"')),
        'b': dict(
            title='B', seeds=[0], commands=dict(train=f'python -c "{waiting}; pathlib.Path(\'{said}.b\').touch()"')
        ),
    }
    plan = Plan.read(str(write_plan(tmp_path, arms)))
    output = []

    def look():
        end = time.monotonic() + 15
        while not any('failed: exit code 1' in text for text in output) and time.monotonic() < end:
            output.append(capsys.readouterr().out)
            time.sleep(0.05)
        assert not Path(f'{said}.b').exists()
        said.touch()

    with ThreadPoolExecutor(1) as pool:
        watcher = pool.submit(look)
        with pytest.raises(UserError, match='out of milk'):
            run_plan(plan, plan.arms, tmp_path / 'runs', jobs=2)
        watcher.result(30)
    assert Path(f'{said}.b').exists()


def test_interrupted(tmp_path):
    begun = tmp_path / 'begun'
    wait = f"import pathlib, time; pathlib.Path('{begun}').touch(); time.sleep(60)"
    arms = dict(a=dict(title='A', commands=dict(train=f'python -c "{wait}"'), seeds=[0]))
    tool = [sys.executable, ROOT / 'tools/analysis_tools/run_experiment.py', write_plan(tmp_path, arms)]
    # Tests that run in the background of a shell ignore SIGINT, and what they start inherits that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [*tool, '--work-dir', tmp_path / 'runs'], stderr=subprocess.PIPE, text=True, start_new_session=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    while not begun.exists():
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert error == 'interrupted; the same command goes on from there\n'
    assert (tmp_path / 'runs/report.md').is_file()


def test_processors_that_may_be_used(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {0, 3, 4, 7}, raising=False)
    seen = []
    monkeypatch.setattr(runs, '_run_command', lambda run, terms: seen.append(terms.threads))
    with pytest.raises(UserError, match='has no mIoU'):
        run_plan(plan, plan.choose(['a'], [0]), tmp_path, jobs=2)
    assert seen == [2]


def test_report_of_some_seeds_on_two_machines(plan, tmp_path):
    run_plan(plan, plan.choose(['a'], [0]), tmp_path, conditions='ONE')
    run_plan(plan, plan.choose(['a', 'b'], [2]), tmp_path, conditions='TWO')
    write_report(plan, tmp_path, tmp_path, 'command')
    text = (tmp_path / 'report.md').read_text()
    assert 'Run on:\n\n- ONE: a/seed_0\n- TWO: a/seed_2, b/seed_2\n' in text
    assert '*arm 1*, for seeds 0, 2:' in text and '*arm 2*, for seeds 2:' in text
    assert 'step.py work_dirs/experiments/plan/b/seed_2/train 2 2\n' in text


def test_results_that_are_no_numbers(plan, tmp_path):
    run_plan(plan, plan.choose(['a']), tmp_path)
    log = tmp_path / 'a/seed_1/train'
    for path in log.glob('**/*.json'):
        path.write_text(re.sub(r'"mIoU": [0-9.]+', '"mIoU": NaN', path.read_text()))
    write_report(plan, tmp_path, tmp_path, 'command')
    content = json.loads((tmp_path / 'report.json').read_text(), parse_constant=pytest.fail)
    assert content['values']['a']['train']['1'] is None
    assert '| arm 1 | nan |' in (tmp_path / 'report.md').read_text()


def test_report_beside_a_run_that_has_begun(tmp_path):
    """It has not logged anything yet."""
    plan = Plan.read(str(write_plan(tmp_path, dict(a=arm(tmp_path, 1)))))
    plan = replace(plan, arms=(replace(plan.arms[0], seeds=(0, 1)),))
    run_plan(plan, [replace(plan.arms[0], seeds=(1,))], tmp_path / 'runs')
    (tmp_path / 'runs/a/seed_0/train').mkdir(parents=True)
    write_report(plan, tmp_path / 'runs', tmp_path / 'out', 'command')
    assert (tmp_path / 'out/curves.png').is_file()


def test_interrupted_training_goes_on(tmp_path):
    """A tool that can resume is told to, if there is a checkpoint."""
    tool = tmp_path / 'tools/train.py'
    tool.parent.mkdir()
    tool.write_text(STEP.replace('float(sys.argv[3])', '1.0') + 'print(sys.argv[1:])')
    arms = dict(a=dict(title='A', commands=dict(train='python tools/train.py {work_dir} {seed}'), seeds=[0, 1]))
    plan = Plan.read(str(write_plan(tmp_path, arms)))
    folder = tmp_path / 'runs/a/seed_1/train'
    folder.mkdir(parents=True)
    (folder / 'iter_1.pth').touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        run_plan(plan, plan.arms, Path('runs'))
    assert '--resume' not in (tmp_path / 'runs/a/seed_0/train/output.txt').read_text()
    assert "'--resume'" in (folder / 'output.txt').read_text()


def test_results_that_are_logged_by_epoch(tmp_path):
    """Of a training by iterations: mmengine says that all validations are of step 0."""
    log = tmp_path / '20260101_000000/vis_data/20260101_000000.json'
    log.parent.mkdir(parents=True)
    rows = [row for step in (50, 100) for row in (dict(lr=0.1, step=step), dict(mIoU=step / 10, step=0))]
    log.write_text('\n'.join(map(json.dumps, rows)))
    assert read_results(tmp_path, 'mIoU') == [(50, 5), (100, 10)]
    # It was killed in its last validation, which a second start has made up for.
    log.write_text('\n'.join(map(json.dumps, rows[:-1])))
    later = tmp_path / '20260102_000000/vis_data/20260102_000000.json'
    later.parent.mkdir(parents=True)
    later.write_text(json.dumps(dict(mIoU=20, step=0)))
    assert read_results(tmp_path, 'mIoU') == [(50, 5), (100, 20)]


def test_results_of_a_resumed_run(tmp_path):
    for start, rows in dict(
        a='{"mIoU": 1, "step": 1}\n{"mIoU": 2, "step": 2}\n{"mIo', b='{"mIoU": 3, "step": 2}\n'
    ).items():
        log = tmp_path / start / 'vis_data/1.json'
        log.parent.mkdir(parents=True)
        log.write_text(rows)
    assert read_results(tmp_path, 'mIoU') == [(1, 1), (2, 3)]
    assert read_results(tmp_path, 'aAcc') == []


def test_results_of_a_test(tmp_path):
    """mmengine writes them beside the folder of a training's."""
    log = tmp_path / '20260101_000000/20260101_000000.json'
    log.parent.mkdir()
    log.write_text('{"mIoU": 3.0, "time": 0.1}')
    assert read_results(tmp_path, 'mIoU') == [(0, 3)]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(metric=None), 'has no metric'),
        (dict(reference='z'), 'reference is z; expected one of a'),
        (dict(arms=dict(a=dict(title='A'))), 'arm a has title'),
        (dict(arms=dict(a=dict(title='A', commands={}, needs=['b']))), 'arm a needs b'),
        (dict(arms=dict(a=dict(title='A', commands=dict(test='python x')))), 'columns names train, which no arm has'),
        (dict(arms=dict(a=dict(title='A', commands=dict(train='python {x}')))), "cannot be filled in .KeyError: 'x'"),
        (dict(arms=dict(a=dict(title='A', commands=dict(train="python '")))), 'No closing quotation'),
        (dict(arms=dict(a=dict(title='{x}', commands=dict(train='python x')))), "cannot be filled in .KeyError: 'x'"),
        (dict(arms=dict(a=dict(title='A', commands=dict(train='python {run.x}')))), 'AttributeError'),
        (
            dict(arms=dict(a=dict(title='A', commands=dict(train='python x'), seeds=[]))),
            'seeds of arm a must be a list',
        ),
        (dict(seeds=3), 'seeds of arm a must be a list of different numbers, got 3'),
        (dict(seeds=[1, 1]), r'seeds of arm a must be a list of different numbers, got \[1, 1\]'),
        (dict(columns=['train']), r"columns must be a dict, got \['train'\]"),
        (dict(arms=[1]), r'arms must be a dict, got \[1\]'),
        (dict(arms=dict(a=dict(title='A', commands=['python x']))), 'commands of arm a must be a dict'),
        (dict(arms=dict(a='x')), "arm a must be a dict, got 'x'"),
        (dict(arms=dict(a=dict(title='A', commands=dict(train='X=1 python x')))), 'begins with no program'),
        (
            dict(arms={n: dict(title='A', commands=dict(train='python x')) for n in 'ab'}),
            'two arms have the same title',
        ),
    ],
)
def test_plans_that_are_wrong(tmp_path, changes, message):
    arms = changes.pop('arms', dict(a=arm(tmp_path, 1)))
    with pytest.raises(UserError, match=message):
        Plan.read(str(write_plan(tmp_path, arms, **changes)))


def test_unknown_names(plan):
    with pytest.raises(UserError, match='has no arm z; expected some of a, b, c'):
        plan.choose(['z'])
    assert [arm.name for arm in plan.choose(['c'])] == ['a', 'b', 'c']
    with pytest.raises(UserError, match='does not exist'):
        Plan.read('none.py')
    with pytest.raises(UserError, match='is the config of a model, not a plan'):
        Plan.read('configs/experiments/lavit_nano_in30.py')


def options_of(words):
    """``--cfg-options`` of a command, as what can be hashed."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    options = parser.parse_known_args(words)[0].cfg_options
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}


@functools.cache
def read(config, options):
    """Read a config with options; a key that leads nowhere is an error."""
    load_config(config, dict(options))


@pytest.mark.parametrize('path', PLANS, ids=lambda path: path.stem)
def test_plans(path, monkeypatch, capsys):
    """Every command could be run, and its config takes its options."""
    monkeypatch.chdir(ROOT)
    plan = Plan.read(str(path))
    assert set(plan.columns) <= {name for arm in plan.arms for name in arm.commands}
    for arm in plan.arms:
        for name in arm.commands:
            words = shlex.split(plan.command(arm, name, 0, Path('root')))
            assert check(words, monkeypatch, capsys) is None, words
            configs = [word for word in words if word.startswith('configs/')]
            assert configs
            for number, config in enumerate(configs):  # the second is a teacher's, without options
                read(config, tuple(options_of(words).items()) if number == 0 else ())
    assert path.stem in (ROOT / 'configs/experiments/README.md').read_text()
