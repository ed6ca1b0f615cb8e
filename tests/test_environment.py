"""Every state of the stack that users meet, made of fake packages in a folder of its own."""

import importlib.machinery
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmlavit.environment import STACKS, TORCH, EnvironmentProblem, check_environment
from mmlavit.utils import environment

ROOT = Path(__file__).resolve().parents[1]
SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
BUILDS_OPS = 'MMCV_WITH_OPS=1 {python} -m pip install --no-build-isolation '

# A loaded mmcv._ext, without a compiler.
OPS = """
import sys, types
sys.modules['mmcv._ext'] = types.SimpleNamespace(get_compiling_cuda_version=lambda: {cuda!r})
"""
TORCH_CODE = """
__version__ = '2.10.0'
class cuda:
    is_available = staticmethod(lambda: {gpu})
class version:
    cuda = '12.8'
"""


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
        self.set_ops('not available')

    def add(self, module: str, dist: str | None, version: str, code: str = '') -> None:
        (self.folder / module).mkdir(exist_ok=True)
        (self.folder / module / '__init__.py').write_text(code)
        (self.folder / module / 'version.py').write_text(f"__version__ = '{version}'\n")
        if dist:
            info = self.folder / f'{dist.replace("-", "_")}-{version}.dist-info'
            info.mkdir()
            (info / 'METADATA').write_text(f'Name: {dist}\nVersion: {version}\n')

    def dist(self, module: str) -> str:
        return {'cv2': 'opencv-python'}.get(module) or (self.stack[module].dist if module in self.stack else module)

    def remove(self, module: str, keep_folder: bool = False) -> None:
        dist = self.dist(module)
        for info in self.folder.glob(f'{dist.replace("-", "_")}-*.dist-info'):
            shutil.rmtree(info)
        if not keep_folder:
            shutil.rmtree(self.folder / module)

    def set_version(self, module: str, version: str) -> None:
        self.remove(module, keep_folder=True)
        self.add(module, self.dist(module), version, (self.folder / module / '__init__.py').read_text())

    def set_ops(self, cuda: str) -> None:
        (self.folder / 'mmcv' / f'_ext{SUFFIX}').touch()
        (self.folder / 'mmcv' / '__init__.py').write_text(OPS.format(cuda=cuda))

    def remove_ops(self) -> None:
        (self.folder / 'mmcv' / f'_ext{SUFFIX}').unlink()
        (self.folder / 'mmcv' / '__init__.py').write_text('')

    def check(self, *scopes: str) -> subprocess.CompletedProcess:
        code = (
            f'import sys, runpy; sys.path.insert(0, {str(self.folder)!r}); '
            f'sys.argv = {["environment", *scopes]!r}; '
            f'runpy.run_path({environment.__file__!r}, run_name="__main__")'
        )
        return subprocess.run(
            [sys.executable, '-I', '-S', '-c', code],
            capture_output=True,
            text=True,
            cwd=self.folder,
        )

    def problem(self, *scopes: str) -> str:
        """Return the message, which is all there is on stderr."""
        done = self.check(*scopes)
        assert done.returncode == 1, done.stdout + done.stderr
        message = done.stderr.strip()
        assert 'Traceback' not in message
        assert len(message.splitlines()) <= 3
        assert 'To mend it' in message
        return message


@pytest.fixture(params=list(STACKS))
def site(request, tmp_path):
    return Site(tmp_path, request.param)


def builds_ops() -> str:
    return BUILDS_OPS.format(python=sys.executable)


def test_complete_stack(site):
    done = site.check('mmdet', 'mmseg', 'mmpretrain')
    assert done.returncode == 0, done.stderr
    assert 'OK: mmdet, mmseg, mmpretrain' in done.stdout
    for needed in site.stack.values():
        assert re.search(rf'{needed.dist} {re.escape(needed.lowest)} ', done.stdout)


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_missing_toolbox(site, scope):
    site.remove(scope)
    assert f'{scope} is not installed' in site.problem(scope)
    assert f'-m pip install "{site.stack[scope]}"' in site.problem(scope)
    assert site.check().returncode == 0  # needed only by those who use it


@pytest.mark.parametrize('keep_folder', [False, True], ids=['gone', 'remains of it'])
def test_missing_mmcv(site, keep_folder):
    site.remove('mmcv')
    if keep_folder:
        (site.folder / 'mmcv' / 'ops').mkdir(parents=True)
    message = site.problem('mmdet')
    assert 'mmcv is not installed, but mmdet needs it' in message
    assert f'{builds_ops()}"{site.stack["mmcv"]}"' in message
    assert '"setuptools' in message  # without build isolation the build tools have to be there


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
    assert f'install "{TORCH}" torchvision' in site.problem()


def test_old_torch(site):
    site.set_version('torch', '2.3.1')
    assert f'torch 2.3.1 is installed. Needed: {TORCH}.' in site.problem()


def test_torch_too_new_to_compile_with(site):
    """It matters only where there is something to compile."""
    site.set_version('torch', '2.13.0')
    assert site.check('mmdet').returncode == 0
    site.remove_ops()
    assert site.check('mmseg').returncode == 0
    message = site.problem('mmdet')
    assert f"torch 2.13.0 is installed, with which mmcv's ops cannot be compiled. Needed: {TORCH}." in message


@pytest.mark.parametrize(
    ('stack', 'module', 'version'),
    [
        ('maintained', 'mmengine', '0.9.0'),
        ('maintained', 'mmdet', '4.0.0'),
        ('maintained', 'mmcv', '2.4.0'),
        ('official', 'mmengine', '0.8.4'),
        ('official', 'mmcv', '2.2.0'),
        ('official', 'mmdet', '3.2.0'),
    ],
)
def test_version_out_of_range(tmp_path, stack, module, version):
    site = Site(tmp_path, stack)
    site.set_version(module, version)
    needed = site.stack[module]
    message = site.problem('mmdet')
    assert f'{needed.dist} {version} is installed. Needed: {needed}.' in message
    assert f'"{needed}"' in message.splitlines()[-1]


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


def test_without_ops(site):
    site.remove_ops()
    message = site.problem('mmdet')
    needed = site.stack['mmcv']
    assert f'{needed.dist} {needed.lowest} is installed without its compiled ops' in message
    flags = '--no-cache-dir --force-reinstall --no-deps'
    assert f'{builds_ops()}{flags} "{needed.dist}=={needed.lowest}"' in message
    # Neither classification nor segmentation calls them.
    assert site.check('mmseg', 'mmpretrain').returncode == 0


def test_lite_mmcv_has_no_ops(tmp_path):
    site = Site(tmp_path, 'official')
    site.remove_ops()
    site.remove('mmcv', keep_folder=True)
    site.add('mmcv', 'mmcv-lite', '2.1.0')
    message = site.problem('mmdet')
    assert 'mmcv-lite 2.1.0 is installed without its compiled ops' in message
    assert f'"{site.stack["mmcv"]}"' in message


def check_ops_of_another_torch(site):
    for scope in ('mmdet', 'mmseg', 'mmpretrain'):
        message = site.problem(scope)
        assert 'do not load' in message
        assert 'compiled for torch 2.10.0' in message
        assert '--no-cache-dir --force-reinstall' in message
    return message


def test_ops_that_are_no_library(site):
    (site.folder / 'mmcv' / '__init__.py').write_text('')
    check_ops_of_another_torch(site)


@pytest.mark.skipif(shutil.which('gcc') is None, reason='needs gcc')
def test_ops_with_undefined_symbol(site):
    source = site.folder / 'ops.c'
    source.write_text('void gone(void); void *PyInit__ext(void) { gone(); return 0; }')
    library = site.folder / 'mmcv' / f'_ext{SUFFIX}'
    subprocess.run(['gcc', '-shared', '-fPIC', '-o', library, source], check=True)
    (site.folder / 'mmcv' / '__init__.py').write_text('')
    message = check_ops_of_another_torch(site)
    assert f'(_ext{SUFFIX}: undefined symbol: gone)' in message


def test_cpu_ops_beside_a_gpu(site):
    assert site.check('mmdet').returncode == 0
    (site.folder / 'torch' / '__init__.py').write_text(TORCH_CODE.format(gpu=True))
    message = site.check('mmdet')
    assert message.returncode == 1
    assert 'compiled for the CPU only, but a GPU is present' in message.stderr
    assert 'CUDA 12.8 toolkit (nvcc)' in message.stderr
    assert 'MMCV_WITH_OPS=1 FORCE_CUDA=1' in message.stderr
    assert 'CUDA_VISIBLE_DEVICES=' in message.stderr
    assert site.check('mmseg', 'mmpretrain').returncode == 0
    site.set_ops('12.8')
    assert site.check('mmdet').returncode == 0


@pytest.mark.parametrize(('scope', 'name'), [('mmseg', 'ftfy'), ('mmpretrain', 'torchvision')])
def test_missing_companion(site, scope, name):
    site.remove(name)
    message = site.problem(scope)
    assert f'{scope} is installed, but not what it imports: {name}' in message
    assert f'-m pip install {name}' in message


def test_opencv_without_libgl(site):
    library = 'libGL.so.1: cannot open shared object file: No such file or directory'
    site.set_version('cv2', '4.12.0.88')
    (site.folder / 'cv2' / '__init__.py').write_text(f'raise ImportError({library!r})')
    message = site.problem()
    assert f'OpenCV cannot be imported: {library}' in message
    assert '--force-reinstall --no-deps "opencv-python-headless==4.12.0.88"' in message


def test_missing_opencv(site):
    site.remove('cv2')
    message = site.problem()
    assert 'OpenCV is not installed' in message
    assert '-m pip install opencv-python-headless' in message


def test_source_folders(site):
    """A checkout on the path has no metadata; its version file counts."""
    for module in ('mmengine', 'mmcv', 'mmdet'):
        site.remove(module, keep_folder=True)
    assert site.check('mmdet').returncode == 0
    site.add('mmdet', None, '2.28.0')
    assert 'mmdet 2.28.0 is installed' in site.problem('mmdet')


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
