"""Every state of the stack that users meet, made of fake packages in a folder of its own."""

import importlib.machinery
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmlavit.environment import STACKS, TORCH, EnvironmentProblem, check_environment
from mmlavit.version import __version__

ROOT = Path(__file__).resolve().parents[1]
SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
PIP = f'{sys.executable} -m pip'
INSTALL_OPS = f'{PIP} install {ROOT}/ops'

# A loaded mmcv._ext, without a compiler.
OPS = """
import sys, types
sys.modules['mmcv._ext'] = types.SimpleNamespace(get_compiling_cuda_version=lambda: {cuda!r})
"""
TORCHVISION_OPS = """
get_compiler_version = lambda: 'torchvision 0.25.0'
get_compiling_cuda_version = lambda: {cuda!r}
"""
TORCH_CODE = """
__version__ = '2.10.0'
class cuda:
    is_available = staticmethod(lambda: {gpu})
class version:
    cuda = '12.8'
"""
# Runs the module without what `import mmlavit` imports.
CHECK = f"""
import runpy, sys, types
sys.path.insert(0, sys.argv[1])
for name in ('mmlavit', 'mmlavit_serve'):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [{str(ROOT)!r} + '/' + name]
del sys.argv[1]
runpy.run_module('mmlavit.environment', run_name='__main__', alter_sys=True)
"""


def test_the_command_itself(tmp_path):
    """Where the package cannot be imported, it says why: in its table and a line, without a trace."""
    (tmp_path / 'cv2.py').write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    env = {**os.environ, 'PYTHONPATH': str(tmp_path)}
    command = [sys.executable, '-m', 'mmlavit.environment', 'mmdet']
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert done.stdout.startswith('package') and 'OpenCV cannot be imported' in done.stderr


def test_a_tool_where_the_package_cannot_be_imported(tmp_path):
    """One line and the code of a mistake, as of any other."""
    (tmp_path / 'cv2.py').write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    env = {**os.environ, 'PYTHONPATH': str(tmp_path)}
    for command in (['tools/train.py', 'a.py'], ['-m', 'mmlavit.engine.launch', 'a.py']):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=env, cwd=ROOT)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith('error: OpenCV cannot be imported') and done.stderr.count('\n') == 1
    done = subprocess.run([sys.executable, '-c', 'import mmlavit'], capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 1 and 'EnvironmentProblem: OpenCV' in done.stderr


def test_the_backbone_alone_needs_no_toolbox():
    code = (
        'import sys; sys.modules.update(dict.fromkeys(["mmcv", "mmdet", "mmseg", "mmpretrain"])); '
        'from mmlavit import LaViT; LaViT("nano")'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


class Site:
    """A folder of fake packages, and the check run on it by an interpreter that sees nothing else."""

    def __init__(self, folder: Path, stack: str):
        self.folder = folder
        self.stack = STACKS[stack]
        self.add('torch', 'torch', '2.10.0', TORCH_CODE.format(gpu=False))
        for module, needed in self.stack.items():
            self.add(module, needed.dist, needed.lowest)
        for companion in ('ftfy', 'regex', 'torchvision'):
            self.add(companion, companion, '1.0')
        self.add('cv2', 'opencv-python', '4.12.0.88')
        self.ops = self.folder / 'mmcv' / '_ext.py'
        self.ops.write_text(TORCHVISION_OPS.format(cuda='not available'))

    def add(self, module: str, dist: str | None, version: str, code: str = '') -> None:
        (self.folder / module).mkdir(exist_ok=True)
        (self.folder / module / '__init__.py').write_text(code)
        if dist:
            info = self.folder / f'{dist.replace("-", "_")}-{version}.dist-info'
            info.mkdir()
            (info / 'METADATA').write_text(f'Name: {dist}\nVersion: {version}\n')

    def remove(self, module: str, keep_folder: bool = False) -> None:
        dist = self.stack[module].dist if module in self.stack else {'cv2': 'opencv-python'}.get(module, module)
        for info in self.folder.glob(f'{dist.replace("-", "_")}-*.dist-info'):
            shutil.rmtree(info)
        if not keep_folder:
            shutil.rmtree(self.folder / module)

    def set_version(self, module: str, version: str) -> None:
        self.remove(module, keep_folder=True)
        dist = self.stack[module].dist if module in self.stack else module
        self.add(module, dist, version, (self.folder / module / '__init__.py').read_text())

    def compile_ops(self, cuda: str | None) -> None:
        """Put compiled ops beside torchvision's; None for ops that do not load."""
        (self.folder / 'mmcv' / f'_ext{SUFFIX}').touch()
        (self.folder / 'mmcv' / '__init__.py').write_text(OPS.format(cuda=cuda) if cuda else '')

    def add_gpu(self) -> None:
        (self.folder / 'torch' / '__init__.py').write_text(TORCH_CODE.format(gpu=True))

    def check(self, *scopes: str) -> subprocess.CompletedProcess:
        command = [sys.executable, '-I', '-S', '-c', CHECK, self.folder, *scopes]
        return subprocess.run(command, capture_output=True, text=True, cwd=self.folder)

    def problem(self, *scopes: str) -> str:
        """Return the message: one line, and all there is on stderr."""
        done = self.check(*scopes)
        assert done.returncode == 1, done.stdout + done.stderr
        message = done.stderr.strip()
        assert len(message.splitlines()) == 1
        assert '. To fix it: ' in message
        return message


@pytest.fixture(params=list(STACKS))
def site(request, tmp_path):
    return Site(tmp_path, request.param)


def test_complete_stack(site):
    done = site.check('mmdet', 'mmseg', 'mmpretrain')
    assert done.returncode == 0, done.stderr
    assert 'OK: mmdet, mmseg, mmpretrain' in done.stdout
    assert re.search(rf'^mmlavit +{re.escape(__version__)}$', done.stdout, re.MULTILINE)
    for needed in site.stack.values():
        assert re.search(rf'{needed.dist} {re.escape(needed.lowest)} ', done.stdout)
    assert re.search(r'^ops +torchvision 0\.25\.0, CPU +for mmdet$', done.stdout, re.MULTILINE)


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_missing_toolbox(site, scope):
    site.remove(scope)
    assert f'{scope} is not installed' in site.problem(scope)
    assert f'{PIP} install "{site.stack[scope]}"' in site.problem(scope)
    assert site.check().returncode == 0  # needed only by those who use it


@pytest.mark.parametrize('keep_folder', [False, True], ids=['gone', 'remains of it'])
def test_missing_mmcv(site, keep_folder):
    site.remove('mmcv')
    if keep_folder:
        (site.folder / 'mmcv' / 'ops').mkdir(parents=True)
    message = site.problem('mmdet')
    assert 'mmcv is not installed, but mmdet needs it' in message
    assert message.endswith(f'{PIP} install "{site.stack["mmcv"]}" {ROOT}/ops')


def test_missing_mmengine(site):
    site.remove('mmengine')
    message = site.problem()
    assert 'mmengine is not installed, but mmlavit needs it' in message
    # Both names of it, for users who do not know that there are two.
    assert all(str(stack['mmengine']) in message for stack in STACKS.values())


def test_missing_everything(tmp_path):
    site = Site(tmp_path, 'maintained')
    for folder in tmp_path.iterdir():
        shutil.rmtree(folder)
    assert 'torch is not installed' in site.problem()
    assert f'"{TORCH}" torchvision' in site.problem()


def test_old_torch(site):
    site.set_version('torch', '2.3.1')
    assert f'torch 2.3.1 is installed. Needed: {TORCH}.' in site.problem()


@pytest.mark.parametrize(
    ('stack', 'module', 'version'),
    [
        ('maintained', 'mmengine', '0.9.0'),
        ('maintained', 'mmcv', '2.4.0'),
        ('official', 'mmengine', '0.8.4'),
        ('official', 'mmdet', '3.2.0'),
    ],
)
def test_version_out_of_range(tmp_path, stack, module, version):
    site = Site(tmp_path, stack)
    site.set_version(module, version)
    needed = site.stack[module]
    message = site.problem('mmdet')
    assert f'{needed.dist} {version} is installed. Needed: {needed}.' in message
    assert f'{PIP} install "{needed}"' in message


def test_local_version_is_in_range(site):
    site.set_version('torch', '2.10.0+cu128')
    assert site.check('mmdet').returncode == 0


def test_mixed_stacks(tmp_path):
    site = Site(tmp_path, 'maintained')
    site.add('mmcv', 'mmcv', '2.1.0')
    message = site.problem()
    assert 'mmcv 2.1.0' in message
    assert 'onedl-mmcv' in message
    assert re.search(r'pip uninstall -y .*\bonedl-mmcv mmcv\b', message)


def test_official_mmcv_of_both_names(tmp_path):
    """mmcv-lite is mmcv without compiled ops; they must not overwrite each other."""
    site = Site(tmp_path, 'official')
    site.remove('mmcv', keep_folder=True)
    site.add('mmcv', 'mmcv', '2.1.0')
    assert site.check('mmdet').returncode == 0
    site.add('mmcv', 'mmcv', '2.2.0')
    shutil.rmtree(site.folder / 'mmcv-2.1.0.dist-info')
    message = site.problem('mmdet')
    assert 'mmcv 2.2.0 is installed' in message
    assert f'{PIP} uninstall -y mmcv && {PIP} install "mmcv-lite' in message


def test_without_ops(site):
    site.ops.unlink()
    message = site.problem('mmdet')
    assert 'is installed without ops' in message
    assert message.endswith(f'To fix it: {INSTALL_OPS}')
    # Neither classification nor segmentation calls them.
    assert site.check('mmseg', 'mmpretrain').returncode == 0


def test_compiled_ops_come_first(site):
    """In one folder, Python prefers a compiled module; the check looks at that one, too."""
    site.compile_ops('12.8')
    found = importlib.machinery.PathFinder.find_spec('_ext', [str(site.folder / 'mmcv')])
    assert Path(found.origin).name == f'_ext{SUFFIX}'
    assert re.search(r'^ops +compiled, CPU and CUDA 12\.8 ', site.check('mmdet').stdout, re.MULTILINE)


def test_compiled_ops_of_another_torch(site):
    site.compile_ops(None)
    assert re.search(rf'^ops +_ext{re.escape(SUFFIX)}, does not load ', site.check('mmdet').stdout, re.MULTILINE)
    for scope in ('mmdet', 'mmseg', 'mmpretrain'):
        message = site.problem(scope)
        assert 'do not load' in message
        assert 'compiled for another torch' in message
        assert f'To fix it: rm ./mmcv/_ext{SUFFIX} && {INSTALL_OPS}' in message


def test_torchvision_of_another_torch(site):
    site.ops.write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    message = site.problem('mmdet')
    assert '(operator torchvision::nms does not exist): torch and torchvision do not fit each other' in message
    assert message.endswith(f'{PIP} install --force-reinstall torch torchvision')


@pytest.mark.parametrize('compiled', [True, False], ids=['compiled', 'torchvision'])
def test_cpu_ops_beside_a_gpu(site, compiled):
    if compiled:
        site.compile_ops('not available')
    assert site.check('mmdet').returncode == 0
    site.add_gpu()
    message = site.problem('mmdet')
    assert 'for the CPU only, but a GPU is present' in message
    assert 'ops for CUDA 12.8, or CUDA_VISIBLE_DEVICES= (empty)' in message
    command = f'rm ./mmcv/_ext{SUFFIX} && {INSTALL_OPS}' if compiled else f'{PIP} install --force-reinstall torch'
    assert f'To fix it: {command}' in message
    assert site.check('mmseg', 'mmpretrain').returncode == 0
    if compiled:
        site.compile_ops('12.8')
    else:
        site.ops.write_text(TORCHVISION_OPS.format(cuda='12.8'))
    assert site.check('mmdet').returncode == 0


@pytest.mark.parametrize(
    ('scope', 'name'), [('mmseg', 'ftfy'), ('mmpretrain', 'torchvision'), ('mmdet', 'torchvision')]
)
def test_missing_companion(site, scope, name):
    site.remove(name)
    message = site.problem(scope)
    assert f'{scope} imports what is not installed: {name}' in message
    assert message.endswith(f'{PIP} install {name}')


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_transformers_that_no_toolbox_can_be_imported_beside(site, scope):
    site.add('transformers', 'transformers', '5.0.0')
    message = site.problem(scope)
    assert 'transformers 5.0.0 is installed' in message and 'Needed: transformers<5, or none' in message
    assert f'{PIP} uninstall -y transformers' in message
    site.set_version('transformers', '4.57.6')
    assert site.check(scope).returncode == 0


def test_opencv_without_libgl(site):
    library = 'libGL.so.1: cannot open shared object file: No such file or directory'
    (site.folder / 'cv2' / '__init__.py').write_text(f'raise ImportError({library!r})')
    message = site.problem()
    assert f'OpenCV cannot be imported: {library}' in message
    assert message.endswith('--force-reinstall --no-deps opencv-python-headless==4.12.0.88')


def test_missing_opencv(site):
    site.remove('cv2')
    message = site.problem()
    assert "OpenCV cannot be imported: No module named 'cv2'" in message
    assert message.endswith('opencv-python-headless')


def test_source_folders(site):
    """A checkout on the path has no metadata, and so no version to check."""
    for module in ('mmengine', 'mmcv', 'mmdet'):
        site.remove(module, keep_folder=True)
    done = site.check('mmdet')
    assert done.returncode == 0
    assert 'mmdet from source' in done.stdout


def test_unknown_scope(site):
    with pytest.raises(ValueError, match="scope is 'mmpose', expected None or one of mmdet"):
        check_environment('mmpose')
    assert site.check('mmpose').returncode == 2


def test_a_problem_is_an_import_error():
    assert issubclass(EnvironmentProblem, ImportError)


@pytest.mark.parametrize('scope', [None, 'mmdet', 'mmseg', 'mmpretrain'])
def test_this_environment(scope):
    check_environment(scope)


@pytest.mark.parametrize(('stack', 'file'), [('maintained', 'mminstall.txt'), ('official', 'openmmlab.txt')])
def test_pins_are_in_range(stack, file):
    lines = (ROOT / 'requirements' / file).read_text().splitlines()
    pins = dict(line.split('==') for line in lines if '==' in line)
    assert TORCH.allows(pins['torch'])
    for needed in STACKS[stack].values():
        assert needed.allows(pins[needed.dist])


def test_torch_range_is_that_of_the_package():
    assert str(TORCH) in (ROOT / 'requirements' / 'runtime.txt').read_text().splitlines()


@pytest.mark.parametrize(
    ('version', 'warned'), [('2.9.1', True), ('2.4.0+cpu', True), ('2.10.0', False), ('2.11', False)]
)
def test_torch_that_checkpoints_can_corrupt(site, version, warned):
    """A warning in one line, and no more: CVE-2026-24747."""
    site.set_version('torch', version)
    done = site.check('mmdet')
    assert done.returncode == 0
    assert (f'torch {version} can be made to corrupt memory by a checkpoint' in done.stderr) == warned
    assert ('CVE-2026-24747' in done.stderr) == warned == (f'{PIP} install --upgrade "torch>=2.10,<3"' in done.stderr)
