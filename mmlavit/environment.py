"""Checks of the OpenMMLab stack, before it fails in ways that do not say what to do.

The five packages exist twice: as maintained builds and as the official releases. Both have the
same import names, so one environment must hold one of the two stacks. ``mmcv`` besides has ops in
C++ that are compiled when it is installed, against the torch that is there: it can be installed
without them, with ops for another torch, or with ops for the CPU only.

    python -m mmlavit.environment [mmdet] [mmseg] [mmpretrain]

prints what is installed and, with exit code 1, the first problem. Importing this module is cheap:
it needs the standard library only.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import warnings
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

from .errors import EnvironmentProblem


@dataclass(frozen=True)
class Requirement:
    """A distribution with the versions that are known to work.

    Args:
        dist (str): Its name on the package index.
        lowest (str): The oldest version.
        below (str): The first version that is too new.
    """

    dist: str
    lowest: str
    below: str

    def __str__(self) -> str:
        return f'{self.dist}>={self.lowest},<{self.below}'

    def allows(self, version: str) -> bool:
        """Tell whether a version is in the range.

        Args:
            version (str): E.g. '2.10.0+cu128'; only the leading numbers count.

        Returns:
            bool: True if it is.
        """
        return not self.is_below(version) and _as_numbers(version) < _as_numbers(self.below)

    def is_below(self, version: str) -> bool:
        """Tell whether a version is older than the oldest in the range.

        Args:
            version (str): As for :meth:`allows`.

        Returns:
            bool: True if it is.
        """
        return _as_numbers(version) < _as_numbers(self.lowest)


# Newer ones work, too, where ops of mmcv are there; their headers need a newer C++ than mmcv's build sets.
TORCH = Requirement('torch', '2.4', '2.13')

# By import name. The first stack is the default: what is missing altogether is asked for from it.
STACKS = {
    'maintained': {
        'mmengine': Requirement('onedl-mmengine', '0.10.12', '0.11'),
        'mmcv': Requirement('onedl-mmcv', '2.3.6', '2.4'),
        'mmdet': Requirement('onedl-mmdetection', '3.5.1', '3.6'),
        'mmseg': Requirement('onedl-mmsegmentation', '1.4.2', '1.5'),
        'mmpretrain': Requirement('onedl-mmpretrain', '1.3.6', '1.4'),
    },
    'official': {
        'mmengine': Requirement('mmengine', '0.10.7', '0.11'),
        'mmcv': Requirement('mmcv', '2.1.0', '2.2'),
        'mmdet': Requirement('mmdet', '3.3.0', '3.4'),
        'mmseg': Requirement('mmsegmentation', '1.2.2', '1.3'),
        'mmpretrain': Requirement('mmpretrain', '1.2.0', '1.3'),
    },
}
MODULES = tuple(STACKS['maintained'])
SCOPES = ('mmdet', 'mmseg', 'mmpretrain')

# What a toolbox imports besides; not every distribution of it requires that.
_COMPANIONS = {'mmdet': (), 'mmseg': ('ftfy', 'regex'), 'mmpretrain': ('torchvision',)}

_BUILD_TOOLS = '"setuptools>=80,<82" wheel packaging ninja psutil'


# `import mmlavit` has imported this module by the time `python -m` runs it, of which runpy warns.
warnings.filterwarnings('ignore', message=f'.*{re.escape(__name__)}.* found in sys.modules', category=RuntimeWarning)


@dataclass(frozen=True)
class Installed:
    """A package of the stack that was found.

    Args:
        module (str): Its import name.
        version (str): Its version.
        dist (str, optional): The distribution it came with; None for a source folder on the path.
        stack (str, optional): The stack of that distribution; None if there is none.
    """

    module: str
    version: str
    dist: str | None = None
    stack: str | None = None

    def __str__(self) -> str:
        return f'{self.dist or self.module} {self.version}'


def check_environment(scope: str | None = None) -> None:
    """Check that what a toolbox needs is installed, in fitting versions, and loads.

    Args:
        scope (str, optional): 'mmdet', 'mmseg' or 'mmpretrain', e.g. a config's ``default_scope``.
            Default: only what ``import mmlavit`` needs, that is torch and mmengine.

    Raises:
        EnvironmentProblem: On the first problem, with what is installed, what is needed and the
            command that mends it.
        ValueError: For another scope.
    """
    if scope is not None and scope not in SCOPES:
        raise ValueError(f'scope is {scope!r}, expected None or one of {", ".join(SCOPES)}')
    installed = find_installed()
    _check_one_stack()
    _check_torch()
    stack = next((p.stack for p in installed.values() if p.stack), 'maintained')
    for module in ('mmengine',) if scope is None else ('mmengine', 'mmcv', scope):
        _check_version(module, installed.get(module), stack, scope)
    _check_opencv()
    if scope is not None:
        _check_companions(scope)
        # Only detectors call compiled ops; the other toolboxes do without. Ops that do not load,
        # however, break every import of mmcv.ops.
        _check_ops(installed['mmcv'], stack, required=scope == 'mmdet')


def find_installed() -> dict[str, Installed]:
    """Find the packages of both stacks, without importing them.

    Returns:
        dict[str, Installed]: By import name. Where both stacks have a package the maintained build
        counts; :func:`check_environment` refuses that anyway.
    """
    installed = {}
    for module in MODULES:
        found = _find_distributions(module) or _find_source(module)
        if found:
            installed[module] = found[0]
    return installed


def _find_distributions(module: str) -> list[Installed]:
    candidates = [(stack, STACKS[stack][module].dist) for stack in STACKS]
    if module == 'mmcv':
        candidates.append(('official', 'mmcv-lite'))  # the official release without ops
    found = []
    for stack, dist in candidates:
        try:
            found.append(Installed(module, metadata.version(dist), dist, stack))
        except metadata.PackageNotFoundError:
            continue
    return found


def _find_source(module: str) -> list[Installed]:
    folder = _find_folder(module)
    version_file = folder / 'version.py' if folder else None
    if not version_file or not version_file.is_file():
        return []
    version = re.search(r'^__version__ = [\'"](.+)[\'"]', version_file.read_text(), re.MULTILINE)
    return [Installed(module, version.group(1))] if version else []


def _find_folder(module: str) -> Path | None:
    """Return a package's folder; None if there is none, or only remains of one without code."""
    spec = find_spec(module)
    return Path(spec.origin).parent if spec and spec.origin else None


def _check_one_stack() -> None:
    found = [part for module in MODULES for part in _find_distributions(module)]
    if len({part.stack for part in found}) < 2:
        return
    dists = ' '.join(part.dist for part in found)
    raise EnvironmentProblem(
        f'Both OpenMMLab stacks are installed into one environment and overwrite each other: '
        f'{", ".join(map(str, found))}.\n'
        f'Needed: either the maintained builds (onedl-...) or the official releases.\n'
        f'To mend it: {_pip()} uninstall -y {dists} && make install'
    )


def _check_torch(compiles: bool = False) -> None:
    """Check that torch is there and not too old, or, with ``compiles``, that mmcv's ops compile with it."""
    if _find_folder('torch') is None:
        raise EnvironmentProblem(
            f'torch is not installed. Needed: {TORCH}.\n'
            f'To mend it: make install, or {_pip()} install "{TORCH}" torchvision'
        )
    try:
        version = metadata.version('torch')
    except metadata.PackageNotFoundError:
        return  # a build of one's own
    if TORCH.is_below(version) or (compiles and not TORCH.allows(version)):
        reason = ", with which mmcv's ops cannot be compiled" if compiles else ''
        raise EnvironmentProblem(
            f'torch {version} is installed{reason}. Needed: {TORCH}.\n'
            f'To mend it: make install, or {_pip()} install "{TORCH}" torchvision, then build mmcv '
            f'again with --no-cache-dir --force-reinstall'
        )


def _check_version(module: str, part: Installed | None, stack: str, scope: str | None) -> None:
    needed = STACKS[stack][module]
    command = _install_mmcv(needed) if module == 'mmcv' else f'{_pip()} install "{needed}"'
    if part is None:
        others = ' or '.join(str(STACKS[other][module]) for other in STACKS if other != stack)
        raise EnvironmentProblem(
            f'{module} is not installed, but {scope or "mmlavit"} needs it. '
            f'Needed: {needed} (or, in the other stack, {others}).\n'
            f'To mend it: make install{_stack_option(stack)}, or {command}'
        )
    # A source folder belongs to no stack: it may fit either.
    ranges = [STACKS[s][module] for s in ([part.stack] if part.stack else STACKS)]
    if not any(needed.allows(part.version) for needed in ranges):
        raise EnvironmentProblem(
            f'{part} is installed. Needed: {" or ".join(map(str, ranges))}.\n'
            f'To mend it: make install{_stack_option(stack)}, or {command}'
        )


def _check_opencv() -> None:
    """Import what mmengine and mmcv import first, and what fails on machines without a desktop."""
    try:
        import_module('cv2')
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f'OpenCV is not installed, but mmengine needs it ({error}).\n'
            f'To mend it: {_pip()} install opencv-python-headless'
        ) from error
    except ImportError as error:
        try:
            version = f'=={metadata.version("opencv-python")}'
        except metadata.PackageNotFoundError:
            version = ''
        raise EnvironmentProblem(
            f'OpenCV cannot be imported: {error}. Needed: its headless build, which does without X11.\n'
            f'To mend it: {_pip()} install --force-reinstall --no-deps "opencv-python-headless{version}"'
        ) from error


def _check_companions(scope: str) -> None:
    missing = [name for name in _COMPANIONS[scope] if find_spec(name) is None]
    if missing:
        names = ' '.join(missing)
        raise EnvironmentProblem(
            f'{scope} is installed, but not what it imports: {names}.\nTo mend it: {_pip()} install {names}'
        )


def find_ops() -> Path | None:
    """Find the compiled ops of mmcv, without importing anything.

    Returns:
        Path | None: The library ``mmcv/_ext.*.so``; None if mmcv has none for this Python.
    """
    folder = _find_folder('mmcv')
    files = [folder / f'_ext{suffix}' for suffix in EXTENSION_SUFFIXES] if folder else []
    return next((file for file in files if file.is_file()), None)


def _check_ops(mmcv: Installed, stack: str, required: bool) -> None:
    torch = import_module('torch')  # also loads the libraries the ops are linked to
    rebuild = _install_mmcv(STACKS[stack]['mmcv'], mmcv, force=True)
    if find_ops() is None:
        if required:
            _check_torch(compiles=True)
            raise EnvironmentProblem(
                f'{mmcv} is installed without its compiled ops (there is no mmcv/_ext'
                f'{EXTENSION_SUFFIXES[0]}), as happens if torch was not there when it was built. '
                f'Needed: ops compiled for torch {torch.__version__}.\n'
                f'To mend it (9 minutes on 2 cores): {rebuild}'
            )
        return
    try:
        ops = import_module('mmcv._ext')
    except ImportError as error:
        _check_torch(compiles=True)
        raise EnvironmentProblem(
            f'The ops of {mmcv} do not load ({_shorten(error)}): they were compiled for another '
            f'torch. Needed: ops compiled for torch {torch.__version__}.\n'
            f'To mend it (9 minutes on 2 cores): {rebuild}'
        ) from error
    # The string that mmcv's C++ code returns where it was compiled without CUDA.
    cpu_only = ops.get_compiling_cuda_version() == 'not available'
    if required and cpu_only and torch.cuda.is_available():
        with_cuda = _install_mmcv(STACKS[stack]['mmcv'], mmcv, force=True, variables='FORCE_CUDA=1 ')
        raise EnvironmentProblem(
            f'The ops of {mmcv} are compiled for the CPU only, but a GPU is present: detectors '
            f'would stop at their first NMS. Needed: ops compiled with the CUDA '
            f'{torch.version.cuda} toolkit (nvcc), which has to be installed first.\n'
            f'To mend it: {with_cuda}\n'
            f'To run on the CPU instead: set CUDA_VISIBLE_DEVICES= (empty)'
        )


def _install_mmcv(needed: Requirement, found: Installed | None = None, force: bool = False, variables: str = '') -> str:
    """Return the command that installs mmcv with ops; with ``force``, past pip's cache."""
    version = f'{needed.dist}=={found.version}' if found and found.dist == needed.dist else needed
    # pip's cache knows neither which torch a wheel was compiled for nor if it has ops at all.
    flags = '--no-cache-dir --force-reinstall --no-deps ' if force else ''
    return (
        f'{_pip()} install {_BUILD_TOOLS} && '
        f'MMCV_WITH_OPS=1 {variables}{_pip()} install --no-build-isolation {flags}"{version}"'
    )


def _pip() -> str:
    """Return pip's command for the running interpreter, which may not be the shell's."""
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    return f'{shlex.quote(str(python))} -m pip'


def _stack_option(stack: str) -> str:
    return '' if stack == 'maintained' else f' STACK={stack}'


def _shorten(error: ImportError) -> str:
    """Return an import error without the path of the library, at most 120 characters of it."""
    text = re.sub(r'\S*' + re.escape(os.sep), '', str(error))
    return text if len(text) <= 120 else f'{text[:117]}...'


def _as_numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: '0.10.8rc1' gives (0, 10, 8)."""
    leading = re.match(r'\d+(\.\d+)*', version)
    return tuple(map(int, leading.group().split('.'))) if leading else ()


def format_table() -> str:
    """Return a table of what is installed and which versions are needed."""
    installed = find_installed()
    rows = [('package', 'installed', 'needed')]
    try:
        rows.append(('torch', metadata.version('torch'), str(TORCH)))
    except metadata.PackageNotFoundError:
        rows.append(('torch', '-', str(TORCH)))
    stack = next((part.stack for part in installed.values() if part.stack), 'maintained')
    for module in MODULES:
        found = str(installed[module]) if module in installed else '-'
        rows.append((module, found, str(STACKS[stack][module])))
    ops = find_ops()
    rows.append(('ops', ops.name if ops else '-', 'for mmdet'))
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return '\n'.join(f'{a:<{widths[0]}}  {b:<{widths[1]}}  {c}' for a, b, c in rows)


def main(argv: list[str] | None = None) -> int:
    """Print the table and the first problem.

    Args:
        argv (list[str], optional): Arguments; default: those of the command line.

    Returns:
        int: Exit code: 1 if there is a problem.
    """
    parser = argparse.ArgumentParser(description='Check the packages mmlavit works with')
    parser.add_argument('scopes', nargs='*', metavar='scope', help=', '.join(SCOPES))
    args = parser.parse_args(argv)
    unknown = [scope for scope in args.scopes if scope not in SCOPES]
    if unknown:
        parser.error(f'unknown scope {unknown[0]}, expected one of {", ".join(SCOPES)}')
    print(format_table())
    try:
        for scope in args.scopes or (None,):
            check_environment(scope)
    except EnvironmentProblem as problem:
        print(f'\n{problem}', file=sys.stderr)
        return 1
    print(f'OK: {", ".join(args.scopes) or "mmlavit can be imported"}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
