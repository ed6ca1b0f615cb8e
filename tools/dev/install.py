#!/usr/bin/env python3
"""Create or complete a virtual environment for mmlavit; `make install` calls this.

The order matters: torch first, then mmcv, whose ops are compiled against that torch, then the
toolboxes. Every finished step leaves a stamp inside the environment, so running the script again
skips it and goes on where an interrupted run stopped. Only the standard library is used, because
nothing is installed yet.
"""

import argparse
import contextlib
import csv
import fcntl
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

OLDEST, NEWEST = (3, 10), (3, 12)
if not OLDEST <= sys.version_info[:2] <= NEWEST:
    sys.exit(
        'mmlavit needs Python 3.10, 3.11 or 3.12, but {} is Python {}.{}: pass another one, '
        'e.g. make install PYTHON=/path/to/python3.11'.format(sys.executable, *sys.version_info)
    )

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / 'requirements'
STACK_FILES = {'maintained': 'mminstall.txt', 'official': 'openmmlab.txt'}
OFFICIAL_NAMES = {'mmcv', 'mmcv-lite', 'mmengine', 'mmdet', 'mmsegmentation', 'mmpretrain'}
MAINTAINED_PREFIX = 'onedl-mm'
EXTRA_FILES = ('runtime.txt', 'optional.txt', 'tests.txt', 'docs.txt')

# 9 minutes on 2 cores, measured with gcc 12; the CUDA kernels take several times longer.
COMPILE_CORE_MINUTES = 18
# Imports the ops as a detector would, and says for which CUDA they were compiled.
OPS_PROBE = (
    'import torch, mmcv; from mmcv import _ext; '
    "print(_ext.get_compiling_cuda_version(), 'gpu' if torch.cuda.is_available() else '-')"
)
INCLUDE_PROBE = "import sysconfig; print(sysconfig.get_paths()['include'])"
CUDA_PROBE = "import torch; print(torch.version.cuda or '-', torch.cuda.is_available())"


class InstallError(Exception):
    """A problem that the user has to solve; its message is all that is printed."""


# --- what is there ------------------------------------------------------------------------------


def parse_steps(text):
    """Split a stack file into its steps.

    Args:
        text (str): Requirement lines under `# [step]` headings.

    Returns:
        dict[str, list[str]]: Requirement lines of each step, in the order of the file.
    """
    steps, name = {}, None
    for line in text.splitlines():
        heading = re.match(r'# \[(\w+)\]', line)
        if heading:
            name = heading.group(1)
            steps[name] = []
        elif line.strip() and not line.startswith('#'):
            steps[name].append(line.strip())
    return steps


def find_site(venv):
    """Return the site-packages folder of a virtual environment; None if it has none yet."""
    return next(iter(sorted(venv.glob('lib/python3.*/site-packages'))), None)


def normalise(name):
    """Return a distribution's name as package indexes compare it."""
    return re.sub(r'[-_.]+', '-', name).lower()


def list_versions(site):
    """Return the version of every distribution in a site-packages folder, by normalised name."""
    from importlib import metadata  # new in Python 3.8; older ones get as far as the message above

    return {
        normalise(dist.metadata['Name']): dist.version
        for dist in metadata.distributions(path=[str(site)])
        if dist.metadata['Name']
    }


def find_other_stack(site, stack):
    """List the distributions in a site-packages folder that belong to the other stack.

    Args:
        site (Path): A site-packages folder.
        stack (str): 'maintained' or 'official', the stack that is wanted.

    Returns:
        list[str]: Names with versions, sorted.
    """
    found = []
    for name, version in sorted(list_versions(site).items()):
        maintained, official = name.startswith(MAINTAINED_PREFIX), name in OFFICIAL_NAMES
        if (official and stack == 'maintained') or (maintained and stack == 'official'):
            found.append(f'{name} {version}')
    return found


def drop_half_installed(site):
    """Forget the distributions that an interrupted pip left incomplete.

    pip takes them for installed as soon as their metadata is there. Without the metadata it
    installs them again, over the files of the first try.

    Args:
        site (Path): A site-packages folder.

    Returns:
        list[str]: Names with versions of what was dropped, sorted.
    """
    for leftover in site.glob('~*'):  # what pip was about to replace
        shutil.rmtree(leftover, ignore_errors=True)
    dropped = []
    for info in sorted(site.glob('*.dist-info')):
        complete = (info / 'RECORD').is_file() and (info / 'METADATA').is_file()
        if complete:
            with open(info / 'RECORD', newline='', encoding='utf-8') as file:
                paths = [row[0] for row in csv.reader(file) if row]
            # Compiled files come and go with the interpreter.
            complete = all(p.endswith('.pyc') or (site / p).exists() for p in paths)
        if not complete:
            shutil.rmtree(info)
            dropped.append(info.name[: -len('.dist-info')].replace('-', ' '))
    return dropped


def find_nvcc():
    """Return (path, version) of the CUDA compiler that torch's extension builder would take.

    Returns:
        tuple[str, str]: E.g. ('/usr/local/cuda/bin/nvcc', '12.8'); two empty strings without one.
    """
    home = os.environ.get('CUDA_HOME') or os.environ.get('CUDA_PATH')
    nvcc = f'{home}/bin/nvcc' if home else shutil.which('nvcc') or '/usr/local/cuda/bin/nvcc'
    if not os.access(nvcc, os.X_OK):
        return '', ''
    shown = subprocess.run([nvcc, '--version'], stdout=subprocess.PIPE, text=True, check=False)
    version = re.search(r'release (\d+\.\d+)', shown.stdout)
    return (nvcc, version.group(1)) if version else ('', '')


def count_cores():
    """Return the number of processor cores this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count_jobs(cores):
    """Return how many compilers may run at once: one per core and per 2 GB of memory."""
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return max(1, min(cores, memory // 2**31))


def check_compiler(include):
    """Check that C++ extensions of Python can be compiled.

    Args:
        include (Path): Where the headers of that Python should be.

    Raises:
        InstallError: If the compiler or Python's headers are missing.
    """
    for variable, default in (('CC', 'gcc'), ('CXX', 'g++')):
        compiler = shlex.split(os.environ.get(variable, '')) or [default]
        if shutil.which(compiler[0]) is None:
            raise InstallError(
                f'mmcv has to be compiled, but the compiler {compiler[0]} was not found: install '
                f'gcc and g++ (Debian, Ubuntu: apt install build-essential)'
            )
    header = include / 'Python.h'
    if not header.is_file():
        name = f'{include.name}-dev'
        raise InstallError(
            f"mmcv has to be compiled, but Python's headers are missing ({header}): install them "
            f'(Debian, Ubuntu: apt install {name}) or pass PYTHON= with another Python'
        )


# --- doing it -----------------------------------------------------------------------------------


def format_time(seconds):
    """Return a duration as people say it, e.g. '45 s' or '3 min 05 s'."""
    minutes, seconds = divmod(int(seconds), 60)
    return f'{minutes} min {seconds:02d} s' if minutes else f'{seconds} s'


class Heartbeat:
    """Shows that a silent command is alive: one line kept up to date, or one every 30 s in a log.

    Args:
        what (str): What is going on, e.g. 'compiling mmcv'.
    """

    def __init__(self, what):
        self.what = what
        self.detail = ''
        self.start = time.monotonic()
        self.terminal = sys.stdout.isatty()
        self._next = 0 if self.terminal else 30

    def beat(self):
        """Show the elapsed time if it is time to."""
        elapsed = time.monotonic() - self.start
        if elapsed < self._next:
            return
        text = f'      {self.what}{self.detail}, {format_time(elapsed)}'
        print(f'\r{text:<79}' if self.terminal else text, end='' if self.terminal else '\n')
        sys.stdout.flush()
        self._next = elapsed + (1 if self.terminal else 30)

    def end(self):
        """Clear the line.

        Returns:
            str: The total time, formatted.
        """
        if self.terminal:
            print('\r' + ' ' * 79 + '\r', end='')
        return format_time(time.monotonic() - self.start)


def run_command(command, what, env=None, log=None, pass_fds=()):
    """Run a command silently but for a heartbeat.

    Args:
        command (list[str]): Program and arguments.
        what (str): What it does, for the heartbeat and the error.
        env (dict[str, str], optional): Variables to add to the environment.
        log (Path, optional): Where to keep all it printed.
        pass_fds (tuple[int, ...]): Open files the command inherits.

    Returns:
        str: How long it took.

    Raises:
        InstallError: If it fails; the message holds what it printed.
    """
    lines = []
    heartbeat = Heartbeat(what)

    def collect(stream):
        for line in stream:
            lines.append(line)
            ninja = re.match(r'\s*\[(\d+)/(\d+)\]', line)
            if ninja:
                heartbeat.detail = ': file {} of {}'.format(*ninja.groups())

    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors='replace',
        # Its own group, so that an interrupt also ends the compilers it started.
        start_new_session=True,
        pass_fds=pass_fds,
    )
    reader = threading.Thread(target=collect, args=(process.stdout,), daemon=True)
    reader.start()
    try:
        while process.poll() is None:
            heartbeat.beat()
            time.sleep(0.2)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise
    finally:
        took = heartbeat.end()
    reader.join(timeout=5)
    if log:
        log.write_text(''.join(lines))
    if process.returncode < 0:
        reason = signal.Signals(-process.returncode).name
        raise InstallError(f'{what} was ended from outside ({reason}). The same command again goes on from here.')
    if process.returncode:
        where = f'\nThe whole output is in {log}' if log else ''
        killed = any('Killed signal terminated program' in line for line in lines)
        memory = '\nA compiler ran out of memory: set MAX_JOBS=1 for one at a time' if killed else ''
        raise InstallError(
            f'{what} failed (exit code {process.returncode}) in\n    {shlex.join(command)}\n'
            f'{"".join(select_errors(lines))}{where}{memory}\n'
            f'After mending the cause, run the same command again: it goes on from here.'
        )
    return took


def select_errors(lines):
    """Return a failed command's output from its first error on; all of it if no line says error.

    A compile prints thousands of harmless lines before, among them the commands it runs.
    """
    for i, line in enumerate(lines):
        if re.search(r'\b(fatal )?error\b|\bFAILED\b', line, re.IGNORECASE) and len(line) < 1000:
            return lines[i:]
    return lines


class Installer:
    """The steps from an empty folder to a working environment.

    Args:
        venv (Path): Folder of the virtual environment.
        stack (str): 'maintained' or 'official'.
        same_python (bool): Refuse an environment that was made with another Python version than
            the one running.
    """

    def __init__(self, venv, stack, same_python):
        self.venv = venv
        self.stack = stack
        self.same_python = same_python
        self.python = str(venv / 'bin' / 'python')
        self.state = venv / '.mmlavit'
        stack_file = REQUIREMENTS / STACK_FILES[stack]
        self.steps = parse_steps(stack_file.read_text())
        # No step may change a version that another one pinned.
        self.constrain = ('-c', str(stack_file))
        self.notes = []
        self._versions = {}
        self._lock = None

    # A step is done when the file named after it holds the hash of what the step depends on, and
    # what it installed has not been replaced or removed by hand since.

    def _key(self, *parts):
        return hashlib.sha256('\n'.join([self.python, *parts]).encode()).hexdigest()

    def _is_done(self, step, key):
        stamp = self.state / step
        if not stamp.is_file() or stamp.read_text() != key:
            return False
        return all(self._is_installed(line) for line in self.steps.get(step, ()) if '==' in line)

    def _is_installed(self, pin):
        """Tell whether a distribution was there in the pinned version when the run began."""
        name, version = pin.split('==')
        return self._versions.get(normalise(name)) == version

    def _pip(self, what, *arguments, env=None, log=None):
        command = [self.python, '-m', 'pip', 'install', *arguments]
        return run_command(command, what, env, log, pass_fds=(self._lock.fileno(),))

    def _probe(self, code):
        """Run a line of Python in the environment: (succeeded, what it printed)."""
        if not os.access(self.python, os.X_OK):
            return False, f'{self.python} is missing'
        done = subprocess.run([self.python, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.returncode == 0, done.stdout.strip()

    def check(self):
        """Find the problems that need no installation to be seen.

        Raises:
            InstallError: If the folder is something else than an environment, was made with
                another Python or holds the other stack, or nothing can be compiled here.
        """
        config = self.venv / 'pyvenv.cfg'
        if self.venv.exists() and not config.is_file() and any(p != self.state for p in self.venv.iterdir()):
            raise InstallError(f'{self.venv} is not a virtual environment: pass another VENV=')
        if config.is_file():
            made = re.search(r'^version(?:_info)?\s*=\s*(\d+)\.(\d+)', config.read_text(), re.M)
            version = tuple(map(int, made.groups())) if made else sys.version_info[:2]
            other_python = version != sys.version_info[:2]
            wrong = other_python and (self.same_python or not self._probe('import pip')[0])
            if wrong or not OLDEST <= version <= NEWEST:
                raise InstallError(
                    '{} was made with Python {}.{}, not {}.{}: remove it or pass another VENV='.format(
                        self.venv, *version, *sys.version_info[:2]
                    )
                )
        site = find_site(self.venv)
        other = find_other_stack(site, self.stack) if site else []
        if other:
            raise InstallError(
                f'{self.venv} holds the other OpenMMLab stack ({", ".join(other)}); both in one '
                f'environment overwrite each other: pass another VENV= or another STACK='
            )
        if not (self.state / 'mmcv').is_file():
            succeeded, include = self._probe(INCLUDE_PROBE)
            check_compiler(Path(include if succeeded else sysconfig.get_paths()['include']))

    def run(self):
        """Do every step that is not done."""
        self.check()
        self.state.mkdir(parents=True, exist_ok=True)
        with open(self.state / 'lock', 'w') as self._lock:
            # Held by pip as well, should this process be killed while it runs.
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f'Waiting for another installation into {self.venv} ...', flush=True)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
            self._run_steps()
        for note in self.notes:
            print(f'NOTE: {note}')

    def _run_steps(self):
        def install(name):
            return lambda: self._pip(f'installing {name}', '-q', *self.constrain, *self.steps[name])

        def install_extras():
            files = [word for name in EXTRA_FILES for word in ('-r', str(REQUIREMENTS / name))]
            return self._pip('installing extras', '-q', *self.constrain, *files)

        steps = self.steps
        extras = [(REQUIREMENTS / name).read_text() for name in EXTRA_FILES]
        package = [(ROOT / name).read_text() for name in ('setup.py', 'mmlavit/version.py')]
        torch_title = 'torch and torchvision (3 GB to download, 1 to 2 minutes on a fast line)'
        # Name, title, what it depends on, action.
        plan = (
            ('venv', 'virtual environment', [], self._make_venv),
            ('torch', torch_title, steps['torch'], install('torch')),
            ('build', 'build tools', steps['build'], install('build')),
            ('mmcv', 'mmcv with its ops', [*steps['torch'], *steps['mmcv'], find_nvcc()[1]], self._install_mmcv),
            ('toolboxes', 'mmengine, mmdet, mmseg, mmpretrain', steps['toolboxes'], install('toolboxes')),
            ('extras', 'what demo, lint, tests and docs need', extras, install_extras),
            ('opencv', 'OpenCV', [*steps['toolboxes'], *extras], self._repair_opencv),
            ('mmlavit', 'mmlavit itself', [str(ROOT), *package, *extras], self._install_mmlavit),
        )
        keys = {step: self._key(*parts) for step, _, parts, _ in plan}
        site = find_site(self.venv)
        self._versions = list_versions(site) if site else {}
        todo = [step for step, _, _, _ in plan if not self._is_done(step, keys[step])]
        if 'torch' in todo and 'mmcv' not in todo:
            todo.append('mmcv')  # its ops may not fit the new torch
        if not todo:
            return
        where = os.path.relpath(self.venv)
        print(f'Installing into {where} ({self.stack} stack), steps to do: {len(todo)}', flush=True)
        number = 0
        for step, title, _, action in plan:
            if step not in todo:
                continue
            (self.state / step).unlink(missing_ok=True)
            site = find_site(self.venv)
            for name in drop_half_installed(site) if site else ():
                print(f'      {name} was left half-installed by an interrupted run: once more')
            number += 1
            print(f'[{number}/{len(todo)}] {title}', flush=True)
            took = action()
            (self.state / step).write_text(keys[step])
            print(f'      done in {took}', flush=True)

    def _make_venv(self):
        """Create the environment, or complete one whose creation was interrupted."""
        site = find_site(self.venv)
        if site and 'pip' in list_versions(site) and self._probe('import pip')[0]:
            return format_time(0)
        command = [sys.executable, '-m', 'venv', str(self.venv)]
        try:
            return run_command(command, 'creating the environment')
        except InstallError as error:
            if 'ensurepip' not in str(error):
                raise
            name = 'python{}.{}-venv'.format(*sys.version_info)
            raise InstallError(
                f'{sys.executable} cannot create virtual environments: install its venv package '
                f'(Debian, Ubuntu: apt install {name}) or pass PYTHON= with another Python'
            ) from None

    def _install_mmcv(self):
        """Install mmcv and make sure that its ops are there, load and fit the GPU.

        pip's cache may hold a wheel of the same version that was built without ops, against
        another torch or without CUDA; then it is built once more, past the cache.
        """
        start = time.monotonic()
        (requirement,) = self.steps['mmcv']
        cores = count_cores()
        jobs = os.environ.get('MAX_JOBS', str(count_jobs(cores)))
        env = {'MMCV_WITH_OPS': '1', 'MAX_JOBS': jobs}

        _, cuda = self._probe(CUDA_PROBE)
        torch_cuda, gpu = cuda.split() if len(cuda.split()) == 2 else ('-', 'False')
        nvcc, nvcc_version = find_nvcc()
        # torch refuses a CUDA compiler of another major version than its own.
        fits = gpu == 'True' and nvcc_version.split('.')[0] == torch_cuda.split('.')[0]
        with_cuda = fits or os.environ.get('FORCE_CUDA') == '1'
        if not with_cuda:
            env['CUDA_VISIBLE_DEVICES'] = ''  # or the build stops where it looks for nvcc

        minutes = max(1, round(COMPILE_CORE_MINUTES / cores))
        remark = ', several times that for its CUDA kernels' if with_cuda else ''
        duration = f'about {minutes} minutes on {cores} cores{remark}'
        arguments = ['-v', *self.constrain, '--no-build-isolation', requirement]
        log = self.state / 'mmcv.log'

        if not self._is_installed(requirement):
            print(f'      C++ code to compile, {duration}; seconds if pip has it in its cache', flush=True)
            self._pip('compiling mmcv', *arguments, env=env, log=log)
            self._repair_opencv()
        problem = self._find_ops_problem(with_cuda)
        if problem:
            print(f'      {problem}: compiling it, {duration}', flush=True)
            force = ['--no-cache-dir', '--force-reinstall', '--no-deps']
            self._pip('compiling mmcv', *force, *arguments, env=env, log=log)
            problem = self._find_ops_problem(with_cuda)
        if problem:
            raise InstallError(f'{problem}, even after compiling it. The log is {log}')

        cpu_only = self.state / 'cpu-only'
        cpu_only.unlink(missing_ok=True)
        if gpu == 'True' and not with_cuda:
            found = f'{nvcc} is of CUDA {nvcc_version}' if nvcc else 'no CUDA compiler was found'
            cpu_only.write_text(
                f"There is a GPU, but mmcv's ops were compiled for the CPU only, because {found}. "
                f'make demo and make test therefore run on the CPU. For the GPU, install the '
                f'CUDA {torch_cuda} toolkit (nvcc), then run make install again.\n'
            )
            self.notes.append(cpu_only.read_text().strip())
        return format_time(time.monotonic() - start)

    def _find_ops_problem(self, with_cuda):
        """Return what is wrong with the installed ops in one clause; '' if nothing is."""
        succeeded, shown = self._probe(OPS_PROBE)
        if not succeeded:
            return f'The ops of the mmcv that pip had do not load ({shown.splitlines()[-1]})'
        if with_cuda and shown.splitlines()[-1].startswith('not available'):
            return 'The ops of the mmcv that pip had are compiled for the CPU only'
        return ''

    def _repair_opencv(self):
        """Replace OpenCV's windows, which need X11's libGL, where this machine has none.

        The toolboxes require the full build by name; the headless one has the same files.
        """
        succeeded, shown = self._probe('import cv2')
        if succeeded:
            return format_time(0)
        _, version = self._probe("from importlib.metadata import version; print(version('opencv-python'))")
        print(f'      {shown.splitlines()[-1]}: replacing OpenCV by its headless build')
        took = self._pip(
            'installing headless OpenCV',
            *('-q', '--force-reinstall', '--no-deps', f'opencv-python-headless=={version}'),
        )
        succeeded, shown = self._probe('import cv2')
        if not succeeded:
            raise InstallError(f'OpenCV cannot be imported: {shown.splitlines()[-1]}')
        return took

    def _install_mmlavit(self):
        return self._pip('installing mmlavit', '-q', '--no-build-isolation', '--no-deps', '-e', str(ROOT))


def parse_args():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description='Create or complete an environment for mmlavit')
    parser.add_argument('--venv', type=Path, default=Path('.venv'), help='its folder')
    parser.add_argument(
        '--stack',
        choices=sorted(STACK_FILES),
        default='maintained',
        help="OpenMMLab's maintained builds (default) or its official releases",
    )
    parser.add_argument(
        '--same-python',
        action='store_true',
        help='refuse an existing environment of another Python version than the one running this',
    )
    return parser.parse_args()


def main():
    """Install; return the exit code."""
    args = parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        Installer(args.venv.absolute(), args.stack, args.same_python).run()
    except KeyboardInterrupt:
        print('\nInterrupted. The same command again goes on from here.', file=sys.stderr)
        return 130
    except InstallError as error:
        print(f'\nERROR: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
