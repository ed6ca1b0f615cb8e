"""The parts of the installer that can be tried without installing."""

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTALL_PY = ROOT / 'tools' / 'dev' / 'install.py'


@pytest.fixture(scope='module')
def install():
    spec = importlib.util.spec_from_file_location('install', INSTALL_PY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def add_dist(site, name, version, files=()):
    info = site / f'{name}-{version}.dist-info'
    info.mkdir(parents=True)
    (info / 'METADATA').write_text(f'Name: {name}\nVersion: {version}\n')
    for file in files:
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).touch()
    listed = [*files, f'{name}/__pycache__/a.pyc', f'{info.name}/METADATA', f'{info.name}/RECORD']
    (info / 'RECORD').write_text(''.join(f'{file},,\n' for file in listed))
    return info


@pytest.mark.parametrize('stack', ['maintained', 'official'])
def test_steps_of_a_stack(install, stack):
    steps = install.parse_steps((install.REQUIREMENTS / install.STACK_FILES[stack]).read_text())
    assert list(steps) == ['torch', 'build', 'mmcv', 'toolboxes']
    assert len(steps['mmcv']) == 1
    assert not any(line.startswith('#') for lines in steps.values() for line in lines)


def test_half_installed_distributions_are_forgotten(install, tmp_path):
    whole = add_dist(tmp_path, 'whole', '1.0', ['whole/a.py'])
    file_gone = add_dist(tmp_path, 'gone', '1.0', ['gone/a.py'])
    (tmp_path / 'gone' / 'a.py').unlink()
    unrecorded = add_dist(tmp_path, 'unrecorded', '2.0')
    (unrecorded / 'RECORD').unlink()
    (tmp_path / '~orch').mkdir()
    assert install.drop_half_installed(tmp_path) == ['gone 1.0', 'unrecorded 2.0']
    assert whole.is_dir()
    assert not any(path.exists() for path in (file_gone, unrecorded, tmp_path / '~orch'))


def test_other_stack_is_found(install, tmp_path):
    add_dist(tmp_path, 'onedl_mmcv', '2.3.6')
    add_dist(tmp_path, 'torch', '2.10.0')
    assert install.find_other_stack(tmp_path, 'maintained') == []
    assert install.find_other_stack(tmp_path, 'official') == ['onedl-mmcv 2.3.6']
    add_dist(tmp_path, 'mmdet', '3.3.0')
    assert install.find_other_stack(tmp_path, 'maintained') == ['mmdet 3.3.0']


def test_failed_command_is_shown_from_its_first_error(install):
    code = "print('quiet part'); print('a.cpp:1: error: no such thing'); print('and more'); raise SystemExit(3)"
    with pytest.raises(install.InstallError) as caught:
        install.run_command([sys.executable, '-c', code], 'compiling mmcv')
    message = str(caught.value)
    assert message.startswith('compiling mmcv failed (exit code 3)')
    assert 'a.cpp:1: error: no such thing\nand more\n' in message
    assert 'quiet part\n' not in message


def test_compiler_out_of_memory(install):
    code = "print('fatal error: Killed signal terminated program cc1plus'); raise SystemExit(1)"
    with pytest.raises(install.InstallError, match='MAX_JOBS=1'):
        install.run_command([sys.executable, '-c', code], 'compiling mmcv')


def test_command_ended_from_outside(install):
    with pytest.raises(install.InstallError, match=r'compiling mmcv was ended from outside \(SIGTERM\)'):
        install.run_command(['sh', '-c', 'kill -TERM $$'], 'compiling mmcv')


def test_interrupted_command_takes_its_children_along(install, tmp_path, monkeypatch):
    started = tmp_path / 'started'

    def beat(self):
        if started.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(install.Heartbeat, 'beat', beat)
    late = tmp_path / 'late'
    with pytest.raises(KeyboardInterrupt):
        install.run_command(['sh', '-c', f'(touch {started}; sleep 1; touch {late}) & wait'], 'waiting')
    time.sleep(1.2)
    assert not late.exists()


def test_something_else_is_left_alone(tmp_path):
    """A folder with the user's files is no place for an environment."""
    (tmp_path / 'thesis.tex').touch()
    done = subprocess.run([sys.executable, INSTALL_PY, '--venv', tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == f'ERROR: {tmp_path} is not a virtual environment: pass another VENV='
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']


class Build:
    """Stands for pip and the environment: which ops the cached and the built mmcv have."""

    def __init__(self, install, folder, monkeypatch, cached, built, gpu='False', nvcc=('', '')):
        self.installer = install.Installer(folder, 'maintained', same_python=False)
        self.installer.state.mkdir()
        self.ops, self.built, self.gpu = None, built, gpu
        self.cached = cached
        self.calls = []
        monkeypatch.delenv('FORCE_CUDA', raising=False)
        monkeypatch.setattr(install, 'find_nvcc', lambda: nvcc)
        monkeypatch.setattr(self.installer, '_pip', self.pip)
        monkeypatch.setattr(self.installer, '_probe', self.probe)

    def pip(self, what, *arguments, env, log):
        past_cache = '--no-cache-dir' in arguments
        self.calls.append(('built' if past_cache else 'cached', 'CUDA_VISIBLE_DEVICES' not in env))
        assert env['MMCV_WITH_OPS'] == '1'
        assert '--no-build-isolation' in arguments
        self.ops = self.built if past_cache else self.cached

    def probe(self, code):
        if 'torch.version.cuda' in code:
            return True, f'12.8 {self.gpu}'
        if '_ext' in code:
            return self.ops is not None, f'{self.ops} gpu' if self.ops else "No module named 'mmcv._ext'"
        return True, ''

    def run(self):
        self.installer._install_mmcv()
        return self.calls


def test_mmcv_from_the_cache(install, tmp_path, monkeypatch):
    build = Build(install, tmp_path, monkeypatch, cached='not available', built=None)
    assert build.run() == [('cached', False)]
    assert not (tmp_path / '.mmlavit' / 'cpu-only').exists()


def test_cached_mmcv_without_ops_is_built_again(install, tmp_path, monkeypatch, capsys):
    build = Build(install, tmp_path, monkeypatch, cached=None, built='not available')
    assert build.run() == [('cached', False), ('built', False)]
    assert "do not load (No module named 'mmcv._ext')" in capsys.readouterr().out


def test_mmcv_that_never_gets_ops(install, tmp_path, monkeypatch):
    build = Build(install, tmp_path, monkeypatch, cached=None, built=None)
    with pytest.raises(install.InstallError, match='even after compiling it'):
        build.run()


def test_gpu_with_its_compiler(install, tmp_path, monkeypatch):
    build = Build(install, tmp_path, monkeypatch, 'not available', '12.8', gpu='True', nvcc=('nvcc', '12.4'))
    assert build.run() == [('cached', True), ('built', True)]


@pytest.mark.parametrize('nvcc', [('', ''), ('/usr/bin/nvcc', '13.0')], ids=['no nvcc', 'nvcc of another CUDA'])
def test_gpu_without_its_compiler(install, tmp_path, monkeypatch, nvcc):
    build = Build(install, tmp_path, monkeypatch, 'not available', None, gpu='True', nvcc=nvcc)
    assert build.run() == [('cached', False)]
    note = (tmp_path / '.mmlavit' / 'cpu-only').read_text()
    assert note.strip() in build.installer.notes
    assert 'install the CUDA 12.8 toolkit' in note
