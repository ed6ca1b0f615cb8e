#!/usr/bin/env python3
"""Create, complete or update a virtual environment for mmlavit; `make install` calls this.

uv installs the packages; pip puts uv into the environment first. What is left to this script: to do nothing if nothing
changed, to continue where an interrupted run stopped, to keep the two stacks apart, to take OpenCV without X11 where
the machine has none, and, on request, to compile mmcv's ops. It needs the standard library only.
"""

import argparse
import csv
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STACK_FILES = {'maintained': 'requirements/mminstall.txt', 'official': 'requirements/openmmlab.txt'}
OTHER_STACK = {
    'maintained': re.compile('(mmcv|mmcv_lite|mmengine|mmdet|mmsegmentation|mmpretrain)-'),
    'official': re.compile('onedl_mm'),
}
THIS_PACKAGE = ('-e', '.[optional,deploy,tests,docs]')
# What the installation depends on: a change in one of them has it looked at again.
INPUTS = ('requirements/*.txt', 'setup.py', 'pyproject.toml', 'mmlavit/version.py', 'ops/pyproject.toml', 'ops/mmcv/*')
UV = 'uv>=0.8'
BUILD_TOOLS = ('setuptools>=80,<82', 'wheel', 'packaging', 'ninja', 'psutil')
OPS_PROBE = "import torch; from mmcv import _ext; assert not _ext.__file__.endswith('.py')"
CUDA_PROBE = 'import torch, torch.utils.cpp_extension as ext; assert ext.CUDA_HOME or not torch.cuda.is_available()'


class InstallError(Exception):
    """A problem that the user has to solve; its message is all that is printed."""


class Installer:
    """One virtual environment.

    Args:
        venv (Path): Its folder, absolute.
        stack (str): 'maintained' or 'official'.
        compiled (bool): Whether to compile mmcv's ops if they are not there. Once there, they stay.
    """

    def __init__(self, venv, stack, compiled):
        self.venv, self.stack, self.compiled = venv, stack, compiled
        self.python, self.uv, self.state = venv / 'bin/python', venv / 'bin/uv', venv / '.mmlavit'
        self.site = venv / 'lib/python{}.{}/site-packages'.format(*sys.version_info)
        lines = (ROOT / STACK_FILES[stack]).read_text().splitlines()
        self.requirements = [line for line in lines if line and not line.startswith('#')]
        # The official release without ops has a name of its own.
        self.mmcv = next(line for line in self.requirements if 'mmcv' in line).replace('-lite', '')

    def run(self):
        """Do what is not done; raise an InstallError if it cannot be done."""
        self.check()
        if not self.is_done():
            self.state.mkdir(parents=True, exist_ok=True)
            with open(self.state / 'lock', 'w') as lock:  # a second run waits for the first
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not self.is_done():
                    self._install()

    def check(self):
        """Raise an InstallError if the folder is something else, has another Python or holds the other stack."""
        running = '{}.{}'.format(*sys.version_info)
        if running not in ('3.10', '3.11', '3.12'):
            raise InstallError(
                f'mmlavit needs Python 3.10, 3.11 or 3.12, but {sys.executable} is Python {running}: '
                f'pass another one, e.g. PYTHON=/path/to/python3.11'
            )
        config = self.venv / 'pyvenv.cfg'
        if not config.is_file() and self.venv.exists() and any(path != self.state for path in self.venv.iterdir()):
            raise InstallError(f'{self.venv} is not a virtual environment: pass another VENV=')
        made = config.is_file() and re.search(r'^version(?:_info)?\s*=\s*(\d+\.\d+)', config.read_text(), re.M)
        if made and made[1] != running:
            raise InstallError(f'{self.venv} has Python {made[1]}, not {running}: remove it or pass another VENV=')
        names = (path.name[: -len('.dist-info')] for path in self.site.glob('*.dist-info'))
        found = sorted(name for name in names if OTHER_STACK[self.stack].match(name))
        if found:
            raise InstallError(
                f'{self.venv} holds the other OpenMMLab stack ({", ".join(found)}); both in one environment '
                f'overwrite each other: pass another VENV= or another STACK='
            )
        if made and not self.python.exists():
            raise InstallError(f'the Python of {self.venv} is gone: remove the folder or pass another VENV=')

    def is_done(self):
        """Tell whether a run finished since the inputs changed, and the pinned versions are still there."""
        stamp = self.state / 'done'
        if not stamp.is_file() or stamp.read_text() != self.key() or (self.compiled and not self.has_compiled_ops()):
            return False
        pins = (line.replace('-', '_').split('==') for line in self.wanted() if '==' in line)
        ops = any(self.site.glob('mmcv/_ext.*'))
        # Also builds of their own, such as torch 2.10.0+cpu, which satisfy the pins.
        found = {path.name.removesuffix('.dist-info').partition('+')[0] for path in self.site.glob('*.dist-info')}
        return ops and all(f'{name}-{version}' in found for name, version in pins)

    def key(self):
        """Return a text that changes with the inputs."""
        inputs = hashlib.sha256(f'{ROOT} {self.stack} {self.has_compiled_ops()}'.encode())
        for path in sorted(path for pattern in INPUTS for path in ROOT.glob(pattern) if path.is_file()):
            inputs.update(path.read_bytes())
        return inputs.hexdigest()

    def has_compiled_ops(self):
        """Tell whether the mmcv that is installed has compiled ops."""
        return any(self.site.glob('mmcv/_ext.*.so'))

    def wanted(self):
        """Return the requirements of the stack, without torchvision's ops for mmcv where there are compiled ones."""
        if not self.has_compiled_ops():
            return self.requirements
        return [self.mmcv, *(line for line in self.requirements if 'mmcv' not in line and line != './ops')]

    def _install(self):
        print(f'Installing into {self.venv} ({self.stack} stack)', flush=True)
        (self.state / 'done').unlink(missing_ok=True)
        self._drop_incomplete()
        if not any(self.site.glob('pip-*.dist-info')):
            self._make_venv()
        if not any(self.site.glob('uv-*.dist-info')):
            self._call(self.python, '-m', 'pip', 'install', '-q', UV)
        compiled = self.compiled or self.has_compiled_ops()  # another mmcv comes without them
        self._uv('install', *self.wanted(), *THIS_PACKAGE)
        if not self._runs('import cv2'):
            # The toolboxes require the build with windows by name; the headless one has the same files.
            opencv = next(line for line in self.requirements if line.startswith('opencv-python=='))
            self._uv('install', '--reinstall', '--no-deps', opencv.replace('==', '-headless=='))
        if compiled and not self._runs(OPS_PROBE):
            self._compile_ops()
        (self.state / 'done').write_text(self.key())

    def _drop_incomplete(self):
        """Remove the metadata of packages that an interrupted run left in part; they are then installed anew."""
        for info in self.site.glob('*.dist-info'):
            complete = (info / 'INSTALLER').is_file() and (info / 'RECORD').is_file()  # both are written last
            if complete:
                with open(info / 'RECORD', newline='', encoding='utf-8') as file:
                    paths = [row[0] for row in csv.reader(file) if row and not row[0].endswith('.pyc')]
                complete = all((self.site / path).exists() for path in paths)
            if not complete:
                shutil.rmtree(info)

    def _make_venv(self):
        done = subprocess.run([sys.executable, '-m', 'venv', self.venv], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            package = 'python{}.{}-venv'.format(*sys.version_info)
            raise InstallError(
                f'{sys.executable} cannot create virtual environments: install its venv package '
                f'(Debian, Ubuntu: apt install {package}) or pass PYTHON= with another Python\n{done.stdout}'
            )

    def _compile_ops(self):
        """Build mmcv against the torch of the environment; only then replace the one without ops."""
        if not shutil.which(os.environ.get('CXX', 'g++').split()[0]):
            raise InstallError('Compiling mmcv needs gcc and g++ (Debian, Ubuntu: apt install build-essential)')
        if not self._runs(CUDA_PROBE):
            raise InstallError(
                'Compiling mmcv for the GPU needs nvcc, of the CUDA version that torch has. For the CPU only: '
                "CUDA_VISIBLE_DEVICES= make install OPS=compiled. torchvision's ops, the default, need neither"
            )
        print(f'Compiling {self.mmcv}: 5 to 9 minutes on 2 cores, several times that with CUDA', flush=True)
        self._uv('install', *BUILD_TOOLS)
        memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
        jobs = max(1, min(os.cpu_count() or 1, memory // 2**31))  # a compiler takes up to 2 GB
        env = {'MMCV_WITH_OPS': '1', 'MAX_JOBS': str(jobs), **os.environ}
        with tempfile.TemporaryDirectory() as folder:
            # Past the cache, which does not know for which torch a wheel was compiled.
            options = ('--no-deps', '--no-build-isolation', '--no-cache-dir', '-w', folder)
            self._call(self.python, '-m', 'pip', 'wheel', *options, self.mmcv, env=env)
            self._uv('uninstall', 'mmlavit-mmcv-ops', *sorted({self.mmcv.split('==')[0], 'mmcv-lite'}))
            self._uv('install', '--no-deps', *map(str, Path(folder).glob('*.whl')))
        if not self._runs(OPS_PROBE):
            raise InstallError(f'{self.mmcv} was compiled, but its ops do not load')

    def _runs(self, code):
        """Tell whether the environment's Python runs a piece of code."""
        command = [self.python, '-c', code]
        return self.python.exists() and subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0

    def _uv(self, command, *arguments):
        """Call uv's pip, with the index and the certificates that pip itself is configured for."""
        config = [self.python, '-m', 'pip', 'config', 'list']
        shown = subprocess.run(config, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
        variables = {'index-url': 'UV_DEFAULT_INDEX', 'cert': 'SSL_CERT_FILE'}
        settings = re.findall(r"^[\w:]+\.(index-url|cert)='(.*)'$", shown, re.M)
        # Bytecode is made once, here: where PYTHONDONTWRITEBYTECODE is set, as in many containers, each start of a tool
        # would otherwise compile the toolboxes again, which takes longer than all else that it does to start.
        env = {'UV_COMPILE_BYTECODE': '1', **{variables[name]: value for name, value in settings}, **os.environ}
        self._call(self.uv, 'pip', command, '--python', self.python, *arguments, env=env)

    def _call(self, *command, env=None):
        if subprocess.run(command, cwd=ROOT, env=env).returncode:
            what = ' '.join(str(word) for word in command[:4])
            raise InstallError(f'{what} ... failed: see above. With a network, the same command continues from here')


def parse_args():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description='Create or update an environment for mmlavit')
    parser.add_argument('--venv', type=Path, default=Path('.venv'), help='its folder')
    parser.add_argument('--stack', choices=list(STACK_FILES), default='maintained', help='builds of OpenMMLab')
    parser.add_argument('--ops', choices=['torchvision', 'compiled'], default='torchvision', help="mmcv's ops")
    return parser.parse_args()


def main():
    """Install."""
    args = parse_args()
    try:
        Installer(args.venv.absolute(), args.stack, args.ops == 'compiled').run()
    except KeyboardInterrupt:
        sys.exit('\nInterrupted. The same command again continues from here.')
    except InstallError as error:
        sys.exit(f'ERROR: {error}')


if __name__ == '__main__':
    main()
