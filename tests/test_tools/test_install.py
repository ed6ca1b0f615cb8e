"""What the installer decides; pip, uv and the environment's Python are replaced by records of their calls."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTALL_PY = ROOT / 'tools' / 'dev' / 'install.py'
OPS = f'mmcv/_ext.cpython-{sys.version_info[0]}{sys.version_info[1]}-x86_64-linux-gnu.so'
MMCV = {'maintained': ('onedl_mmcv-2.3.6', 'onedl_mmcv-2.3.6'), 'official': ('mmcv_lite-2.1.0', 'mmcv-2.1.0')}


def add_dist(site, name, files=()):
    info = site / f'{name}.dist-info'
    info.mkdir(parents=True, exist_ok=True)
    for file in files:
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).touch()
    listed = [*files, f'{name}/__pycache__/a.pyc', f'{info.name}/METADATA']
    for file in ('METADATA', 'INSTALLER'):
        (info / file).touch()
    (info / 'RECORD').write_text(''.join(f'{file},,\n' for file in listed))
    return info


@pytest.fixture
def install(tmp_path, monkeypatch):
    """The script as a module, working on a copy of what it reads."""
    spec = importlib.util.spec_from_file_location('install', INSTALL_PY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    root = tmp_path / 'clone'
    shutil.copytree(ROOT / 'requirements', root / 'requirements')
    shutil.copytree(ROOT / 'ops', root / 'ops', ignore=shutil.ignore_patterns('build', '*.egg-info', '__pycache__'))
    monkeypatch.setattr(module, 'ROOT', root)
    return module


@pytest.fixture
def fake(install, tmp_path, monkeypatch):
    """Return a function that makes an installer of which nothing is called, but some effects of the calls are there."""

    def make(stack='maintained', compiled=False, cv2=True, fails=()):
        installer = install.Installer(tmp_path / 'venv', stack, compiled)
        installer.calls = []

        def call(*command, env=None):
            words = [str(word) for word in command]
            if any(word in words for word in fails):
                raise install.InstallError('failed')
            words = words[words.index('pip') + 1 :]
            installer.calls.append(' '.join(words[:1] + words[3:] if '--python' in words else words))
            if words[-1] == install.UV:
                add_dist(installer.site, 'uv-0.8.0')
            elif words[0] == 'wheel':
                assert env['MMCV_WITH_OPS'] == '1'
                Path(words[words.index('-w') + 1], f'{MMCV[stack][1]}-py3.whl').touch()
            elif words[0] == 'uninstall':
                for name in words[3:]:
                    for info in installer.site.glob(f'{name.replace("-", "_")}-*.dist-info'):
                        shutil.rmtree(info)
            elif words[-1].endswith('.whl'):
                add_dist(installer.site, MMCV[stack][1], [OPS])
            else:
                for word in words:
                    if '==' in word:
                        dist = word.replace('-', '_').replace('==', '-')
                        if 'mmcv' in word and not (installer.site / f'{dist}.dist-info').is_dir():
                            (installer.site / OPS).unlink(missing_ok=True)  # another one takes them with it
                        add_dist(installer.site, dist)
                if './ops' in words:
                    add_dist(installer.site, 'mmlavit_mmcv_ops-1.0.0', ['mmcv/_ext.py'])

        def runs(code):
            if 'cv2' in code:
                return cv2
            return code != install.OPS_PROBE or installer.has_compiled_ops()

        def make_venv():
            installer.calls.append('venv')
            add_dist(installer.site, 'pip-25.0')
            installer.python.parent.mkdir()
            installer.python.touch()
            (installer.venv / 'pyvenv.cfg').write_text('version = {}.{}.0\n'.format(*sys.version_info))

        monkeypatch.setattr(installer, '_call', call)
        monkeypatch.setattr(installer, '_runs', runs)
        monkeypatch.setattr(installer, '_make_venv', make_venv)
        monkeypatch.setattr(install.subprocess, 'run', lambda *a, **k: subprocess.CompletedProcess(a, 0, stdout=''))
        monkeypatch.setenv('CXX', sys.executable)
        return installer

    return make


def test_a_python_that_is_gone(fake, install):
    installer = fake()
    installer.run()
    installer.python.unlink()
    with pytest.raises(install.InstallError, match='the Python of .*venv is gone'):
        fake().run()


def test_interrupted_before_there_is_anything(fake):
    """The installer's own folder is no reason to refuse the environment."""
    installer = fake()
    installer.state.mkdir(parents=True)
    installer.run()
    assert installer.calls[0] == 'venv'


def test_ops_that_are_gone(fake):
    first = fake()
    first.run()
    (first.site / 'mmcv/_ext.py').unlink()
    again = fake()
    again.run()
    assert again.calls and (again.site / 'mmcv/_ext.py').is_file()


@pytest.mark.parametrize('stack', ['maintained', 'official'])
def test_from_nothing_and_again(fake, stack):
    first = fake(stack)
    first.run()
    venv, uv, packages = first.calls
    assert venv == 'venv'
    assert uv == 'install -q uv>=0.8'
    assert packages == f'install {" ".join(first.requirements)} -e .[optional,deploy,tests,docs]'
    assert './ops' in first.requirements
    again = fake(stack)
    again.run()
    assert again.calls == []


@pytest.mark.parametrize('file', ['requirements/mminstall.txt', 'ops/mmcv/_ext.py'])
def test_changed_input(fake, install, file):
    fake().run()
    with open(install.ROOT / file, 'a') as opened:
        opened.write('# another line\n')
    again = fake()
    again.run()
    assert len(again.calls) == 1


def test_other_version_of_a_package(fake):
    first = fake()
    first.run()
    next(first.site.glob('torch-*.dist-info')).rename(first.site / 'torch-2.4.0.dist-info')
    again = fake()
    again.run()
    assert len(again.calls) == 1


def test_own_build_of_a_pinned_package(fake):
    first = fake()
    first.run()
    info = next(first.site.glob('torch-*.dist-info'))
    info.rename(info.with_name(info.name.replace('.dist-info', '+cpu.dist-info')))
    again = fake()
    again.run()
    assert again.calls == []


def test_interrupted_installation(fake, install):
    """What is there in part is installed anew, what is whole is not."""
    first = fake(fails=['-e'])
    with pytest.raises(install.InstallError):
        first.run()
    site = first.site
    whole = add_dist(site, 'whole-1.0', ['whole/a.py'])
    parts = [add_dist(site, name, [f'{name}/a.py']) for name in ('gone-1.0', 'unrecorded-2.0', 'unfinished-1.0')]
    (site / 'gone-1.0' / 'a.py').unlink()
    (parts[1] / 'RECORD').unlink()
    (parts[2] / 'INSTALLER').unlink()
    second = fake()
    second.run()
    assert len(second.calls) == 1  # neither the environment nor uv
    assert whole.is_dir()
    assert not any(part.exists() for part in parts)


def test_opencv_without_libgl(fake, install):
    installer = fake(cv2=False)
    installer.run()
    assert installer.calls[-1] == 'install --reinstall --no-deps opencv-python-headless==4.12.0.88'


@pytest.mark.parametrize('stack', ['maintained', 'official'])
def test_compiled_ops(fake, stack):
    """They replace torchvision's, and stay when the environment is updated without the option."""
    fake(stack).run()
    compiling = fake(stack, compiled=True)
    compiling.run()
    assert [call.split()[0] for call in compiling.calls] == ['install', 'install', 'wheel', 'uninstall', 'install']
    assert not list(compiling.site.glob(f'{MMCV[stack][0]}.dist-info')) or stack == 'maintained'
    for compiled in (True, False):
        done = fake(stack, compiled=compiled)
        done.run()
        assert done.calls == []
    (done.state / 'done').unlink()
    updating = fake(stack)
    updating.run()
    (call,) = updating.calls
    assert './ops' not in call
    assert 'mmcv-lite' not in call
    assert updating.mmcv in call
    # Another version of mmcv comes without them.
    shutil.rmtree(updating.site / f'{MMCV[stack][1]}.dist-info')
    (updating.state / 'done').unlink()
    another = fake(stack)
    another.run()
    assert [call.split()[0] for call in another.calls] == ['install', 'install', 'wheel', 'uninstall', 'install']
    assert another.has_compiled_ops()


def test_failed_compilation_leaves_the_environment_usable(fake, install):
    with pytest.raises(install.InstallError):
        fake(compiled=True, fails=['wheel']).run()
    after = fake()
    after.run()
    assert './ops' in after.calls[0]


def test_no_compiler(fake, install, monkeypatch):
    installer = fake(compiled=True)
    monkeypatch.setenv('CXX', 'no-such-compiler')
    with pytest.raises(install.InstallError, match='needs gcc and g'):
        installer.run()


def test_gpu_without_nvcc(fake, install, monkeypatch):
    installer = fake(compiled=True)
    monkeypatch.setattr(installer, '_runs', lambda code: 'CUDA_HOME' not in code and code != install.OPS_PROBE)
    with pytest.raises(install.InstallError, match='nvcc.*CUDA_VISIBLE_DEVICES= make install OPS=compiled'):
        installer.run()


@pytest.mark.parametrize(('stack', 'other'), [('official', 'onedl_mmcv-2.3.6'), ('maintained', 'mmcv_lite-2.1.0')])
def test_other_stack(fake, install, stack, other):
    installer = fake(stack)
    installer._make_venv()
    add_dist(installer.site, other)
    with pytest.raises(install.InstallError, match=rf'holds the other OpenMMLab stack \({other}\)'):
        installer.run()


def test_something_else_is_left_alone(tmp_path):
    """A folder with the user's files is no place for an environment."""
    (tmp_path / 'thesis.tex').touch()
    done = subprocess.run([sys.executable, INSTALL_PY, '--venv', tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == f'ERROR: {tmp_path} is not a virtual environment: pass another VENV='
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']


def test_environment_of_another_python(tmp_path):
    (tmp_path / 'pyvenv.cfg').write_text('home = /usr/bin\nversion = 3.9.2\n')
    done = subprocess.run([sys.executable, INSTALL_PY, '--venv', tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert f'{tmp_path} has Python 3.9, not {sys.version_info[0]}.{sys.version_info[1]}' in done.stderr


def test_network_settings_of_pip(install, tmp_path, monkeypatch):
    """uv asks the index that pip is configured for."""
    installer = install.Installer(tmp_path, 'maintained', False)
    installer.python = tmp_path / 'python'
    shown = ":env:.cert='/some/certificates.pem'\nglobal.index-url='https://mirror.example/simple'\nglobal.timeout='60'"
    installer.python.write_text(f'#!/bin/sh\ncat <<END\n{shown}\nEND\n')
    installer.python.chmod(0o755)
    calls = []
    monkeypatch.setattr(installer, '_call', lambda *command, env: calls.append(env))
    monkeypatch.delenv('UV_DEFAULT_INDEX', raising=False)
    monkeypatch.delenv('SSL_CERT_FILE', raising=False)
    installer._uv('install', 'torch')
    monkeypatch.setenv('UV_DEFAULT_INDEX', 'https://own.example/simple')
    installer._uv('install', 'torch')
    assert [env['UV_DEFAULT_INDEX'] for env in calls] == ['https://mirror.example/simple', 'https://own.example/simple']
    assert calls[0]['SSL_CERT_FILE'] == '/some/certificates.pem'


@pytest.mark.parametrize(('own', 'value'), [(None, '1'), ('0', '0')])
def test_bytecode_is_compiled_by_every_installation(install, tmp_path, monkeypatch, own, value):
    """Also for what is installed anew later: OpenCV without windows, mmcv with compiled ops."""
    installer = install.Installer(tmp_path, 'maintained', False)
    installer.python = Path(sys.executable)
    calls = []
    monkeypatch.setattr(installer, '_call', lambda *command, env: calls.append(env))
    monkeypatch.delenv('UV_COMPILE_BYTECODE', raising=False)
    if own:
        monkeypatch.setenv('UV_COMPILE_BYTECODE', own)
    installer._uv('install', 'torch')
    assert calls[0]['UV_COMPILE_BYTECODE'] == value


def test_failed_command(install, tmp_path, capfd):
    installer = install.Installer(tmp_path, 'maintained', False)
    with pytest.raises(install.InstallError, match='sh -c exit 3 ... failed: see above'):
        installer._call('sh', '-c', 'exit 3')
