"""What the benchmark measures, how it survives failures, and its arithmetic; times are not judged."""

import importlib.util
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exportable import ARCH
from tool_runs import run_tool

from mmlavit import environment
from mmlavit.analysis.benchmark import subjects as subjects_module
from mmlavit.analysis.benchmark.measure import Comparison, Result, compare
from mmlavit.analysis.benchmark.plots import plot_comparisons
from mmlavit.analysis.benchmark.report import Report, comparison_rows, failures, growth_factors, growth_rows
from mmlavit.analysis.benchmark.runtimes import EXPORTED, RUNTIMES
from mmlavit.analysis.benchmark.subjects import PRESETS, SUBJECTS, InputSize, Subject, parse_input, resolve_subjects
from mmlavit.analysis.benchmark.worker import Runner, Settings, Worker, WorkerError
from mmlavit.environment import EnvironmentProblem
from mmlavit.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools/analysis_tools/benchmark.py'
NANO = Subject('nano', 'LaViT-nano', 'mmlavit.LaViT', dict(arch='nano'))
QUICK = Settings(threads=1, warmup=1, memory_base=64)
SIZE = InputSize(1, 64, 64)

# Millions, without classification heads: the peers are the published ones.
PARAMETERS = {
    **{f'lavit_t{kind}': 10.36 for kind in ('', '_pool')},
    **{f'lavit_s{kind}': 21.88 for kind in ('', '_pool', '_no_ar')},
    **{f'lavit_b{kind}': 39.78 for kind in ('', '_pool')},
    **{'lavit_t_twin': 11.00, 'lavit_s_twin': 23.67, 'lavit_b_twin': 43.55},
    **{'pvt_v2_b2': 24.85, 'pvt_v2_b2_mmdet': 24.85, 'mit_b2': 24.20, 'resnet50': 23.51},
    **{'swin_t': 27.52, 'swin_t_mmdet': 27.52, 'convnext_t': 27.82, 'hiera_t': 26.88},
    **{'pvt_v2_b2_less': 23.06, 'pvt_v2_b2_twin': 24.85},
    **{'deit_s': 21.67, 'deit_s_less': 20.36, 'vit_s': 21.67, 'vit_s_less': 20.36},
    **{'cpubone_b3': 35.89, 'cpubone_b2': 14.67, 'efficientvit_b2': 14.98, 'mobilenetv4_m': 7.20},
}


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other on a busy machine make small models take minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_subjects_are_complete():
    assert set(SUBJECTS) == set(PARAMETERS)
    assert all(subject.name == name for name, subject in SUBJECTS.items())


def test_what_has_less_attention_is_ours():
    assert all(SUBJECTS[f'{name}_less'].is_lavit for name in ('deit_s', 'vit_s', 'pvt_v2_b2'))
    assert not any(SUBJECTS[name].is_lavit for name in ('deit_s', 'vit_s', 'pvt_v2_b2_mmdet', 'resnet50'))


@pytest.mark.parametrize('name', list(SUBJECTS))
def test_subject(name):
    """It gives a pyramid, or one map, and nothing in it makes a training step cheaper than it is."""
    model = pickle.loads(pickle.dumps(SUBJECTS[name])).build(64, 96)  # as the worker gets it
    model.train()
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(PARAMETERS[name], abs=0.01)
    model.eval()
    with torch.inference_mode():
        maps = model(torch.rand(1, 3, 64, 96))
    if name.startswith(('deit', 'vit')):  # one map of stride 16; timm's as tokens, with the class token
        assert [x.shape.numel() for x in maps] == [384 * (24 if name.startswith('deit') else 25)]
    else:
        assert [tuple(x.shape[-2:]) for x in maps] == [(64 // s, 96 // s) for s in (4, 8, 16, 32)]


def test_inputs():
    assert parse_input('coco') == InputSize(1, 800, 1344)
    assert parse_input('3x32x64') == InputSize(3, 32, 64)
    assert str(PRESETS['512']) == '2x512x512'
    for text in ('', 'coca', '512x512', '0x32x32', '1x2x3x4'):
        with pytest.raises(UserError, match=r'expected BATCHxHEIGHTxWIDTH.*coco \(1x800x1344\)'):
            parse_input(text)


def test_unknown_subjects():
    with pytest.raises(UserError, match='unknown backbone swin_x, vgg; known are lavit_t, '):
        resolve_subjects(['lavit_s', 'swin_x', 'vgg'])
    assert [s.name for s in resolve_subjects(['resnet50', 'lavit_s', 'resnet50'])] == ['resnet50', 'lavit_s']


@pytest.mark.parametrize(
    ('config', 'kind', 'parameters'),
    [
        ('retinanet_lavit_nano_bccd', 'LaViT', 2.11),
        ('retinanet_none_nano_bccd', 'LaViTControl', 1.69),
        ('upernet_pvt_v2_nano_camvid', 'PyramidVisionTransformerV2', 2.43),
        ('upernet_resnet_nano_camvid', 'ResNet', 2.16),
    ],
)
def test_backbone_of_a_config(config, kind, parameters):
    path = str(ROOT / f'configs/experiments/{config}.py')
    (subject,) = resolve_subjects([path, path])
    assert (subject.name, subject.title) == (config, f'{kind} of {path}')
    model = pickle.loads(pickle.dumps(subject)).build(64, 96)
    model.eval()
    assert type(model).__name__ == kind
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, abs=0.01)
    with torch.inference_mode():
        assert [tuple(x.shape[-2:]) for x in model(torch.rand(1, 3, 64, 96))] == [
            (64 // s, 96 // s) for s in (4, 8, 16, 32)
        ]


def test_configs_without_a_backbone(tmp_path):
    base, other = tmp_path / 'base.py', tmp_path / 'other' / 'lavit_s_in1k.py'
    base.write_text("default_scope = 'mmdet'\n")
    other.parent.mkdir()
    other.write_text(f"_base_ = '{ROOT / 'configs/lavit_s_in1k.py'}'\n")
    with pytest.raises(UserError, match=r'base.py has no model.backbone; expected the config of a'):
        resolve_subjects([str(base)])
    with pytest.raises(UserError, match=r'retinanet_lavit.py has default_scope=None, expected one of mmdet, mmseg'):
        resolve_subjects([str(ROOT / 'configs/_base_/models/retinanet_lavit.py')])
    with pytest.raises(UserError, match=r'config nowhere.py does not exist'):
        resolve_subjects(['nowhere.py'])
    with pytest.raises(UserError, match=r'would have the same name in the table'):
        resolve_subjects([str(ROOT / 'configs/lavit_s_in1k.py'), str(other)])


def test_missing_toolbox(monkeypatch):
    found = environment.find_installed()
    del found['mmdet']
    monkeypatch.setattr(subjects_module, 'find_installed', lambda: found)
    monkeypatch.setattr(environment, 'find_installed', lambda: found)
    with pytest.raises(EnvironmentProblem, match='mmdet is not installed'):
        resolve_subjects(['lavit_s', 'resnet50'])
    resolve_subjects(['lavit_s', 'swin_t'])


def test_missing_timm(monkeypatch):
    monkeypatch.setattr(subjects_module, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match='pip install timm'):
        resolve_subjects(['pvt_v2_b2'])


@pytest.mark.parametrize('mode', ['inference', 'train'])
@pytest.mark.parametrize('dtype', ['fp32', 'bf16'])
def test_runner(mode, dtype):
    runner = Runner(NANO, SIZE, replace(QUICK, mode=mode, dtype=dtype))
    runner.warm_up()
    assert runner.model.training == (mode == 'train')
    seconds = runner.run(2)
    assert len(seconds) == 2
    assert min(seconds) > 0
    assert all((p.grad is not None) == (mode == 'train') for p in runner.model.parameters())
    finished = runner.finish()
    assert finished['params'] == sum(p.numel() for p in runner.model.parameters())
    assert finished['macs'] > 1e6


def test_a_backbone_whose_train_returns_nothing():
    """As those of OpenMMLab do, and with it their ``eval``."""
    runner = Runner(SUBJECTS['resnet50'], SIZE, QUICK)
    assert runner.model.eval() is None
    runner.warm_up()
    assert runner.finish()['params'] == pytest.approx(PARAMETERS['resnet50'] * 1e6, rel=1e-3)


def test_compiled_subject(monkeypatch):
    calls = []
    monkeypatch.setattr(torch, 'compile', lambda model, **options: calls.append(options) or model.forward)
    Runner(NANO, SIZE, QUICK)
    assert not calls
    runner = Runner(NANO.run_by('compile'), SIZE, QUICK)
    runner.warm_up()
    assert runner.run(1)
    assert calls == [{'dynamic': False}]


@pytest.mark.parametrize('runtime', ['channels_last', 'onnxruntime', 'openvino'])
def test_runtimes(runtime):
    """They compute what eager mode does, at every size that comes."""
    if runtime in EXPORTED:
        pytest.importorskip(runtime)
    # One stage: an export takes seconds for each, and whole models are exported in test_deployment.
    model = replace(NANO, kwargs=dict(arch=ARCH, out_indices=(0,))).build(64, 64).eval()
    run = RUNTIMES[runtime](model, 1)
    for size in ((1, 3, 64, 96), (2, 3, 64, 64)):
        images = torch.rand(size)
        with torch.inference_mode():
            for found, expected in zip(run(images), model(images), strict=True):
                torch.testing.assert_close(torch.as_tensor(found), expected, rtol=1e-4, atol=1e-4)


def cpu_seconds(pid):
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='needs /proc')
def test_worker_sleeps_between_turns_and_can_be_killed(monkeypatch):
    monkeypatch.setenv('OMP_WAIT_POLICY', 'ACTIVE')  # idle threads would spin for ever
    with Worker(NANO, InputSize(1, 128, 128), replace(QUICK, threads=2)) as worker:
        assert os.environ['OMP_WAIT_POLICY'] == 'ACTIVE'  # only the worker's environment is changed
        worker.call('warm_up')
        assert len(worker.call('run', 3)) == 3
        before = cpu_seconds(worker.pid)
        time.sleep(0.4)
        assert cpu_seconds(worker.pid) - before <= 0.02  # two ticks of the clock that counts it
        assert 1 < worker.call('finish')['memory_mb'] < 1000
        assert 'aten::' in worker.call('profile', 1, 5)
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match='killed by SIGKILL, most likely for lack of memory'):
            worker.call('run', 1)


def test_failures_leave_the_others_alone():
    subjects = [
        Subject('aborts', 'dies of a signal', 'os.abort'),
        Subject('raises', 'an error', 'mmlavit.LaViT', dict(arch='huge')),
        NANO,
        Subject('exits', 'ends without an answer', 'sys.exit', {}),
    ]
    said = []
    (comparison,) = compare(subjects, [SIZE], QUICK, rounds=3, iterations=2, notify=said.append)
    errors = {result.subject.name: result.error for result in comparison.results}
    assert errors['aborts'] == 'killed by SIGABRT'
    assert errors['raises'].startswith('ConfigError: arch must be one of nano')
    assert errors['exits'] == 'ended with code 0'
    assert errors['nano'] is None
    assert [len(seconds) for seconds in comparison.result('nano').rounds] == [2, 2, 2]
    aborts, nano = comparison.result('aborts'), comparison.result('nano')
    assert {*aborts.ratios_to(nano).values(), *nano.ratios_to(aborts).values()} == {None}
    assert said[-2:] == ['round 3 of 3: running nano at 1x64x64', 'counting nano at 1x64x64']
    header, *rows = comparison_rows(comparison, 'nano')
    assert {len(row) for row in rows} == {len(header)}
    assert 'failed' in rows[0]
    assert rows[2][header.index('time / nano')] == '1.00 (1.00)'
    assert failures([comparison])[0] == 'aborts failed at 1x64x64: killed by SIGABRT'


def test_inputs_take_turns_too():
    said = []
    small, large = compare([NANO], [SIZE, InputSize(1, 64, 96)], QUICK, rounds=2, iterations=1, notify=said.append)
    assert (small.size.width, large.size.width) == (64, 96)
    running = [text.split()[-1] for text in said if 'running' in text]
    assert running == ['1x64x64', '1x64x96', '1x64x96', '1x64x64']
    assert large.results[0].macs > small.results[0].macs


def measured(name, rounds, memory=None, error=None):
    subject = Subject(name, name, 'os.abort')
    return Result(subject, rounds, memory_mb=memory, params=2_000_000, macs=3_000_000_000, error=error)


def test_ratios():
    # The second round is disturbed: it moves the ratio of the medians, and not the ratio within rounds.
    a = measured('a', [[1.0, 1.0], [10.0, 10.0], [1.0, 1.0], [10.0, 10.0]], memory=100.0)
    b = measured('b', [[2.0, 2.0], [20.0, 20.0], [2.0, 2.0], [2.0, 20.0]], memory=50.0)
    c = measured('c', [[1.0]] * 4, memory=0.0)
    assert a.median == 5.5
    assert (b.quantile(0.25), b.median, b.quantile(0.75)) == (2.0, 2.0, 20.0)
    # Of 2, 2, 2, 1.1 within rounds.
    assert b.ratios_to(a) == dict(time=pytest.approx(2.0 / 5.5), time_within_rounds=pytest.approx(2.0), memory=0.5)
    assert a.ratios_to(c)['memory'] is None
    _, *rows = comparison_rows(Comparison(SIZE, [a, b, c]), 'a')
    assert rows[1] == ['b', 'b', '2.00', '3.00', '2000', '2000–20000', '0.36 (2.00)', '50', '0.50']
    assert rows[2][-2:] == ['0', '–']


def test_plot_is_sorted_and_holds_its_caption():
    results = [
        measured(name, [[seconds]], memory=1.0) for name, seconds in (('slow', 3.0), ('fast', 1.0), ('mid', 2.0))
    ]
    figure = plot_comparisons([Comparison(SIZE, [*results, measured('x', [], error='no')])], 'a version 1.0, ' * 40)
    for axes in figure.axes:
        assert [label.get_text() for label in axes.get_yticklabels()] == ['fast', 'mid', 'slow']
        assert axes.yaxis_inverted()
    figure.canvas.draw()
    box = figure._suptitle.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.height > 40  # several lines


def growing(*seconds):
    """Comparisons at three sizes, the second backbone failing at the last."""
    growth = []
    for side, s in zip((32, 64, 128), seconds):
        error = 'too big' if side == 128 else None
        results = [measured('a', [[s]], memory=10 * s), measured('b', [[s]], memory=0.0, error=error)]
        growth.append(Comparison(InputSize(1, side, side), results))
    return growth


@pytest.mark.parametrize('option', [['--growth'], ['--profile', 'lavit_s']])
def test_runtimes_where_only_eager_is_measured(option, monkeypatch, capsys):
    options = ['--runtime', 'eager', 'onnxruntime', *option]
    assert run_tool(monkeypatch, 'analysis_tools/benchmark.py', *options) == 2
    assert '--profile and --growth measure in eager mode' in capsys.readouterr().err


def test_growth():
    growth = growing(1.0, 2.0, 16.0)
    assert growth_factors(growth) == {
        'a': {'time': 8.0, 'time_within_rounds': 8.0, 'memory': 8.0},
        'b': {'time': None, 'time_within_rounds': None, 'memory': None},
    }
    header, *rows = growth_rows(growth)
    assert header[1:5] == ['32x32 (ms)', '64x64 (ms)', '128x128 (ms)', 'factor']
    assert rows[0] == ['a', '1000', '2000', '16000', '8.00 (8.00)', '10', '20', '160', '8.00']
    assert rows[1] == ['b', '1000', '2000', 'failed', '–', '0', '0', '–', '–']
    assert growth_factors(growth[:1])['a']['time'] == 1.0
    assert growth_factors([]) == {}


def test_report_with_growth(tmp_path):
    growth = growing(1.0, 2.0, 16.0)
    report = Report('the command', 'a', QUICK, QUICK, 1, 1, comparisons=growth[2:], growth=growth)
    report.save(tmp_path)
    text = (tmp_path / 'report.md').read_text()
    assert '4 times the pixels' in text
    assert text.count('b failed at 1x128x128: too big') == 2
    data = json.loads((tmp_path / 'report.json').read_text())
    assert data['growth_factors']['a']['time'] == 8.0
    assert data['comparisons'][0]['results'][1]['error'] == 'too big'
    for name in ('time.png', 'growth.png'):
        assert (tmp_path / name).read_bytes().startswith(b'\x89PNG')


def test_report_when_everything_failed(tmp_path):
    growth = [Comparison(InputSize(1, side, side), [measured('a', [], error='too big')]) for side in (32, 64)]
    Report('the command', 'a', QUICK, QUICK, 1, 1, comparisons=growth, growth=growth).save(tmp_path)
    assert '| a | a | – | – | failed |' in (tmp_path / 'report.md').read_text()
    assert (tmp_path / 'growth.png').exists()


def test_command(tmp_path):
    options = '--subjects lavit_t lavit_t_pool --inputs 1x64x64 --mode train --rounds 2 --warmup 1 --threads 1'.split()
    command = [sys.executable, str(TOOL), *options, '--out-dir', str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert 'time / lavit_t' in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ['report.json', 'report.md', 'time.png']
    data = json.loads((tmp_path / 'report.json').read_text())
    assert data['command'].startswith('python tools/analysis_tools/benchmark.py --subjects lavit_t lavit_t_pool')
    assert data['settings'] | {'mode': 'train', 'dtype': 'fp32', 'threads': 1} == data['settings']
    assert data['device']
    assert data['versions']['torch'] == torch.__version__
    (comparison,) = data['comparisons']
    assert comparison['input'] == {'batch': 1, 'height': 64, 'width': 64}
    reference, pool = comparison['results']
    assert reference['ratios']['time'] == reference['ratios']['time_within_rounds'] == 1
    assert pool['ratios']['time'] == pytest.approx(pool['median_s'] / reference['median_s'])
    assert [len(seconds) for seconds in pool['rounds_s']] == [1, 1]
    text = (tmp_path / 'report.md').read_text()
    assert '## 64x64, batch 1' in text
    assert '| lavit_t_pool | LaViT-T, pooled keys | 10.36 |' in text
    assert str(ROOT) not in text


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location('benchmark_tool', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_compile_measures_both(tool, monkeypatch, tmp_path):
    asked = []

    def compare(subjects, sizes, settings, **options):
        asked.extend((subject.name, subject.runtime) for subject in subjects)
        return [Comparison(sizes[0], [replace(measured('x', [[1.0]], memory=1.0), subject=s) for s in subjects])]

    monkeypatch.setattr(tool, 'compare', compare)
    options = '--subjects lavit_t resnet50 --inputs 224 --runtime eager compile --ratio-to resnet50 --out-dir'.split()
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *options, str(tmp_path)])
    tool.main()
    assert asked == [
        ('lavit_t', 'eager'),
        ('lavit_t_compile', 'compile'),
        ('resnet50', 'eager'),
        ('resnet50_compile', 'compile'),
    ]
    assert '| lavit_t_compile | LaViT-T, torch.compile |' in (tmp_path / 'report.md').read_text()


@pytest.mark.parametrize(
    ('options', 'reference'),
    [('', 'lavit_s_compile'), ('--ratio-to lavit_t', 'lavit_t_compile'), ('--runtime compile eager', 'lavit_s')],
)
def test_reference_in_any_runtime(tool, monkeypatch, tmp_path, options, reference):
    def compare(subjects, sizes, settings, **options):
        return [Comparison(sizes[0], [replace(measured('x', [[1.0]], memory=1.0), subject=s) for s in subjects])]

    monkeypatch.setattr(tool, 'compare', compare)
    given = f'--subjects lavit_t lavit_s --inputs 224 --runtime compile {options} --out-dir'.split()
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *given, str(tmp_path)])
    tool.main()
    assert json.loads((tmp_path / 'report.json').read_text())['reference'] == reference


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ('--subjects lavit_x', 'unknown backbone lavit_x; known are lavit_t'),
        ('--inputs 64x64', "unknown input '64x64'"),
        ('--inputs', '--inputs names none'),
        ('--subjects lavit_t --ratio-to resnet50', '--ratio-to resnet50 is not among'),
        ('--subjects lavit_t --out-dir setup.py', 'cannot write to the folder setup.py (File exists)'),
        ('--profile vgg', 'unknown backbone vgg'),
        ('--growth vgg', 'unknown backbone vgg'),
        pytest.param(
            '--device cuda',
            'torch finds no GPU',
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU'),
        ),
    ],
)
def test_mistakes_end_in_one_line(tool, monkeypatch, capsys, options, message):
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *options.split()])
    with pytest.raises(SystemExit) as end:
        tool.main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('error: ')
    assert message in line
