"""Checks of the OpenMMLab stack, before it fails in ways that do not say what to do.

The five packages exist twice: as maintained builds and as the official releases. Both have the same import names, so
one environment must hold one of the two stacks. mmcv besides imports its ops as ``mmcv._ext``: torchvision's, from this
repository's folder ``ops``, or mmcv's own in C++, which fit the torch that they were compiled for and no other.

    python -m mmlavit.environment [mmdet] [mmseg] [mmpretrain]

prints what is installed and, with exit code 1, the first problem. Importing this module is cheap: it needs the standard
library only.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import warnings
from importlib import import_module, metadata
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from .errors import EnvironmentProblem
from .version import __version__


class Requirement(NamedTuple):
    """A distribution, the oldest version that is known to work and the first that is too new."""

    dist: str
    lowest: str
    below: str

    def __str__(self) -> str:
        return f'{self.dist}>={self.lowest},<{self.below}'

    def allows(self, version: str) -> bool:
        """Tell whether a version, of which only the leading numbers count, is in the range."""
        return _as_numbers(self.lowest) <= _as_numbers(version) < _as_numbers(self.below)


TORCH = Requirement('torch', '2.4', '3')
# Before it, loading a checkpoint with `weights_only`, as we do, can corrupt memory: CVE-2026-24747.
_SAFE_TORCH = '2.10'

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
        'mmcv': Requirement('mmcv-lite', '2.1.0', '2.2'),
        'mmdet': Requirement('mmdet', '3.3.0', '3.4'),
        'mmseg': Requirement('mmsegmentation', '1.2.2', '1.3'),
        'mmpretrain': Requirement('mmpretrain', '1.2.0', '1.3'),
    },
}
MODULES = tuple(STACKS['maintained'])
SCOPES = ('mmdet', 'mmseg', 'mmpretrain')

# What a toolbox imports besides; not every distribution of it requires that.
_COMPANIONS = {'mmdet': ('torchvision',), 'mmseg': ('ftfy', 'regex'), 'mmpretrain': ('torchvision',)}
# With a later one, the multimodal models of mmpretrain, which all three toolboxes import, end in `TypeError: NoneType
# takes no arguments`. None is needed.
_TRANSFORMERS_BELOW = '5'

# What ops without CUDA say of their CUDA version, as mmcv's C++ code does.
_NO_CUDA = 'not available'

# In a clone, and in an installed package.
_TOOLS = {(Path(__file__).resolve().parent / place).resolve() for place in ('../tools', '.mim/tools')}

# `import mmlavit` has imported this module by the time `python -m` runs it, of which runpy warns.
warnings.filterwarnings('ignore', message=f'.*{re.escape(__name__)}.* found in sys.modules', category=RuntimeWarning)


class Installed(NamedTuple):
    """A package that was found; without a distribution and a stack if it is a folder on the path."""

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
        EnvironmentProblem: On the first problem, with what is installed, what is needed and the command that fixes it.
        ValueError: For another scope.
    """
    if scope is not None and scope not in SCOPES:
        raise ValueError(f'scope is {scope!r}, expected None or one of {", ".join(SCOPES)}')
    installed = find_installed()
    _check_one_stack()
    _check_torch()
    stack = next((part.stack for part in installed.values() if part.stack), 'maintained')
    for module in ('mmengine',) if scope is None else ('mmengine', 'mmcv', scope):
        _check_version(module, installed.get(module), stack, scope)
    _check_opencv()
    if scope is not None:
        missing = ' '.join(name for name in _COMPANIONS[scope] if find_spec(name) is None)
        if missing:
            raise _problem(f'{scope} imports what is not installed: {missing}', f'{_pip()} install {missing}')
        _check_transformers()
        # Only detectors call ops. Ops that do not load, however, break every import of mmcv.ops.
        if scope == 'mmdet' or _find_ops():
            _check_ops(installed['mmcv'], called=scope == 'mmdet')


def find_installed() -> dict[str, Installed]:
    """Return the packages of both stacks by import name, without importing them."""
    found = {module: _find_distributions(module) for module in MODULES}
    for module in MODULES:
        if not found[module] and _find_folder(module):
            found[module] = [Installed(module, 'from source')]
    return {module: parts[0] for module, parts in found.items() if parts}


def _find_distributions(module: str) -> list[Installed]:
    candidates = [(stack, STACKS[stack][module].dist) for stack in STACKS]
    if module == 'mmcv':
        candidates.append(('official', 'mmcv'))  # with compiled ops
    versions = [(_get_version(dist), dist, stack) for stack, dist in candidates]
    return [Installed(module, version, dist, stack) for version, dist, stack in versions if version]


def _get_version(dist: str) -> str | None:
    try:
        return metadata.version(dist)
    except metadata.PackageNotFoundError:
        return None


def _find_folder(module: str) -> Path | None:
    """Return a package's folder; None if there is none, or only remains of one without code."""
    spec = find_spec(module)
    return Path(spec.origin).parent if spec and spec.origin else None


def _check_one_stack() -> None:
    found = [part for module in MODULES for part in _find_distributions(module)]
    if len({part.stack for part in found}) > 1:
        raise _problem(
            f'Both OpenMMLab stacks are in one environment and overwrite each other: {", ".join(map(str, found))}. '
            f'Needed: either the maintained builds (onedl-...) or the official releases',
            f'{_pip()} uninstall -y {" ".join(part.dist for part in found)} && make install',
        )


def _check_torch() -> None:
    version = _get_version('torch')  # none in a build of one's own
    if _find_folder('torch') is None or (version and not TORCH.allows(version)):
        found = f'torch {version} is installed' if version else 'torch is not installed'
        raise _problem(f'{found}. Needed: {TORCH}', f'{_pip()} install --upgrade "{TORCH}" torchvision')
    if version and _as_numbers(version) < _as_numbers(_SAFE_TORCH):
        warnings.warn(
            f'torch {version} can be made to corrupt memory by a checkpoint, also when it loads weights only '
            f'(CVE-2026-24747): load files of your own only, or {_pip()} install --upgrade '
            f'"torch>={_SAFE_TORCH},<{TORCH.below}" torchvision',
            stacklevel=2,
        )


def _check_version(module: str, part: Installed | None, stack: str, scope: str | None) -> None:
    needed = STACKS[stack][module]
    command = f'{_pip()} install "{needed}"'
    if module == 'mmcv':
        command += f' {_ops_source()}'
        if part and part.dist and part.dist != needed.dist:
            command = f'{_pip()} uninstall -y {part.dist} && {command}'
    command = f'make install{"" if stack == "maintained" else f" STACK={stack}"}, or {command}'
    if part is None:
        others = ' or '.join(str(STACKS[other][module]) for other in STACKS if other != stack)
        raise _problem(
            f'{module} is not installed, but {scope or "mmlavit"} needs it. '
            f'Needed: {needed} (or, in the other stack, {others})',
            command,
        )
    if part.stack and not needed.allows(part.version):
        raise _problem(f'{part} is installed. Needed: {needed}', command)


def _check_opencv() -> None:
    """Import what mmengine and mmcv import first, and what fails on machines without a desktop."""
    try:
        import_module('cv2')
    except ImportError as error:
        version = _get_version('opencv-python')
        raise _problem(
            f'OpenCV cannot be imported: {error}. Needed: its headless build, which does without X11',
            f'{_pip()} install --force-reinstall --no-deps opencv-python-headless{f"=={version}" if version else ""}',
        ) from error


def _check_transformers() -> None:
    version = _get_version('transformers')
    if version and _as_numbers(version) >= _as_numbers(_TRANSFORMERS_BELOW):
        raise _problem(
            f'transformers {version} is installed, and the toolboxes cannot be imported beside it. '
            f'Needed: transformers<{_TRANSFORMERS_BELOW}, or none',
            f'{_pip()} uninstall -y transformers, or {_pip()} install "transformers<{_TRANSFORMERS_BELOW}"',
        )


def _find_ops() -> Path | None:
    """Return the file imported as ``mmcv._ext``: compiled ops (``.so``) before torchvision's (``.py``)."""
    folder = _find_folder('mmcv')
    files = [folder / f'_ext{suffix}' for suffix in (*EXTENSION_SUFFIXES, '.py')] if folder else []
    return next((file for file in files if file.is_file()), None)


def _check_ops(mmcv: Installed, called: bool) -> None:
    file = _find_ops()
    install = f'{_pip()} install {_ops_source()}'
    if file is None:
        raise _problem(f"{mmcv} is installed without ops. Needed: torchvision's ops for mmcv", install)
    compiled = file.suffix != '.py'
    if compiled:
        command = f"rm {_relative(file)} && {install} (torchvision's ops), or compile them (docs/get_started.md)"
    else:
        command = f'{_pip()} install --force-reinstall torch torchvision'
    try:
        torch, ops = _load_ops()
    except (ImportError, RuntimeError) as error:  # torchvision beside a torch of another version: RuntimeError
        fault = 'they were compiled for another torch' if compiled else 'torch and torchvision do not fit each other'
        raise _problem(f'The ops of {mmcv} do not load ({_shorten(error)}): {fault}', command) from error
    if called and torch.cuda.is_available() and ops.get_compiling_cuda_version() == _NO_CUDA:
        raise _problem(
            f'The ops of {mmcv} ({file.name}) are for the CPU only, but a GPU is present. '
            f'Needed: ops for CUDA {torch.version.cuda}, or CUDA_VISIBLE_DEVICES= (empty) to use the CPU',
            command,
        )


def _load_ops() -> tuple[ModuleType, ModuleType]:
    # torch first: it loads the libraries that compiled ops are linked to.
    return import_module('torch'), import_module('mmcv._ext')


def _describe_ops() -> str:
    file = _find_ops()
    if file is None:
        return '-'
    try:
        ops = _load_ops()[1]
    except (ImportError, RuntimeError):
        return f'{file.name}, does not load'
    origin = 'compiled' if file.suffix != '.py' else ops.get_compiler_version()
    cuda = ops.get_compiling_cuda_version()
    return f'{origin}, CPU' + ('' if cuda == _NO_CUDA else f' and CUDA {cuda}')


def _problem(text: str, command: str) -> EnvironmentProblem:
    return EnvironmentProblem(f'{text}. To fix it: {command}')


def _ops_source() -> str:
    """Return the folder of torchvision's ops for mmcv: in a clone, or in an installed mmlavit."""
    package = Path(__file__).resolve().parent
    folders = (package.parent / 'ops', package / '.mim' / 'ops')
    return _relative(next((folder for folder in folders if folder.is_dir()), folders[0]))


def _pip() -> str:
    """Return pip's command for the running interpreter, which may not be the shell's."""
    return f'{_relative(Path(sys.executable))} -m pip'


def _relative(path: Path) -> str:
    """Return a path for a command line, relative (with a leading ./) where it is below the current folder."""
    if path.is_relative_to(Path.cwd()):
        return shlex.quote(f'./{path.relative_to(Path.cwd())}')
    return shlex.quote(str(path))


def _shorten(error: Exception) -> str:
    """Return an error's first 120 characters, without the path of a library."""
    return re.sub(r'\S*' + re.escape(os.sep), '', str(error))[:120].partition('\n')[0]


def _as_numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: '0.10.8rc1' gives (0, 10, 8)."""
    leading = re.match(r'\d+(\.\d+)*', version)
    return tuple(map(int, leading.group().split('.'))) if leading else ()


def format_table() -> str:
    """Return a table of what is installed and which versions are needed."""
    installed = find_installed()
    rows = [
        ('package', 'installed', 'needed'),
        ('mmlavit', __version__, ''),
        ('torch', _get_version('torch') or '-', str(TORCH)),
    ]
    stack = next((part.stack for part in installed.values() if part.stack), 'maintained')
    for module in MODULES:
        rows.append((module, str(installed.get(module, '-')), str(STACKS[stack][module])))
    rows.append(('ops', _describe_ops(), 'for mmdet'))
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return '\n'.join(f'{a:<{widths[0]}}  {b:<{widths[1]}}  {c}'.rstrip() for a, b, c in rows)


def is_own_tool() -> bool:
    """Tell whether this process runs a script of this repository, or a module of this package."""
    if sys.argv[:1] == ['-m']:
        return any(word.startswith('mmlavit.') for word in sys.orig_argv)
    script = Path(sys.argv[0] if sys.argv else '').resolve()
    return not _TOOLS.isdisjoint(script.parents)


def main(argv: list[str] | None = None) -> int:
    """Print the table and the first problem; return 1 if there is one, else 0."""
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
