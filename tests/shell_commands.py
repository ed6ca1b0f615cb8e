"""Whether a shell command could be run: its program, its script and its options exist."""

import importlib.util
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from documents import ROOT

# What only sets up the shell, and what is installed elsewhere.
ELSEWHERE = {
    '.',
    'cd',
    'export',
    'git',
    'ls',
    'ln',
    'mim',
    'mkdir',
    'nvidia-smi',
    'pre-commit',
    'sbatch',
    'source',
    'srun',
}
# Arguments of the scripts in front of the options of a Python tool, and the tool's own arguments among them.
SCRIPTS = {
    'dist_train.sh': ('train.py', ['config', 'GPUS']),
    'dist_test.sh': ('test.py', ['config', 'checkpoint', 'GPUS']),
    'slurm_train.sh': ('train.py', ['PARTITION', 'JOB_NAME', 'config']),
    'slurm_test.sh': ('test.py', ['PARTITION', 'JOB_NAME', 'config', 'checkpoint']),
}


@cache
def load(path):
    """Import a tool as a module."""
    spec = importlib.util.spec_from_file_location(f'tool_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse(path, args, monkeypatch, capsys):
    """Let a tool's own parser read the arguments; return what it complains about."""
    monkeypatch.setattr(sys, 'argv', [path.name, *args])
    try:
        load(path).parse_args()
    except SystemExit as stopped:
        if stopped.code not in (0, None):
            return capsys.readouterr().err.strip().splitlines()[-1]
    return None


def check_python(args, monkeypatch, capsys):
    first, *rest = args
    first = first.replace('$TOOLS/', 'tools/')  # from a project of one's own
    if first == '-c':
        compile(rest[0], 'command', 'exec')
        return None
    if first == '-m':
        # venv and pip are of the Python that is about to be set up.
        return None if importlib.util.find_spec(rest[0]) else f'no module {rest[0]}'
    if first.startswith('$') or not first.startswith(('tools/', 'docs/')):
        return None if first.startswith('$') else f'{first} is not a script of the repository'
    path = ROOT / first
    return parse(path, rest, monkeypatch, capsys) if path.is_file() else f'no file {first}'


def check_script(program, args, monkeypatch, capsys):
    path = ROOT / program
    if not path.is_file() or not path.stat().st_mode & 0o111:
        return f'{program} is not an executable file'
    if path.name not in SCRIPTS:
        return None
    tool, expected = SCRIPTS[path.name]
    if len(args) < len(expected):
        return f'{program} needs {" ".join(expected)}'
    own = [word for word, what in zip(args, expected) if what.islower()]
    rest = args[len(expected) :]
    if path.name.startswith('slurm') and rest and not rest[0].startswith('-'):
        rest = ['--work-dir', *rest]
    return parse(ROOT / 'tools' / tool, own + rest, monkeypatch, capsys)


def check_make(args):
    makefile = (ROOT / 'Makefile').read_text()
    for word in args:
        known = rf'^{word.split("=")[0]} \?=|\$\(.*{word.split("=")[0]}' if '=' in word else rf'^{re.escape(word)}:'
        if not re.search(known, makefile, re.MULTILINE):
            return f'the Makefile knows no {word}'
    return None


def check_pip(args):
    if not args or args[0] not in ('install', 'uninstall'):
        return None
    for option, value in zip(args, [*args[1:], '']):
        folder, _, extra = value.rstrip(']').partition('[')
        if option in ('-r', '-e') and not (ROOT / folder).exists():
            return f'no file {folder}'
        if option == '-e' and extra and not (ROOT / f'requirements/{extra}.txt').exists():
            return f'no extra {extra}'
    unknown = {word for word in args if word.startswith('--')} - set(pip_options())
    return f'pip has no {unknown}' if unknown else None


@cache
def pip_options():
    done = subprocess.run(
        [sys.executable, '-m', 'pip', 'install', '--help'], capture_output=True, text=True, check=True
    )
    return re.findall(r'--[a-z-]+', done.stdout)


def check(command, monkeypatch, capsys):
    """Return what is wrong with a command; None if nothing is."""
    program, *args = command
    if re.fullmatch(r'python(3(\.\d+)?)?', program):
        return check_python(args, monkeypatch, capsys)
    if program.endswith('.sh'):
        return check_script(program, args, monkeypatch, capsys)
    if program == 'make':
        return check_make(args)
    if program == 'pip':
        return check_pip(args)
    found = shutil.which(program) or (Path(sys.executable).parent / program).exists()
    return None if found or program in ELSEWHERE else f'no program {program}'
