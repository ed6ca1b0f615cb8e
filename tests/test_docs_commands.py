"""Every shell command in the documents could be run: its program, its script and its options exist."""

import subprocess

import pytest
from documents import DOCUMENTS, ROOT, SHELL, code_blocks, commands, name, split
from shell_commands import check


@pytest.mark.parametrize('document', DOCUMENTS, ids=name)
def test_commands_could_run(document, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    problems = {' '.join(command): check(command, monkeypatch, capsys) for command in commands(document)}
    assert {command: problem for command, problem in problems.items() if problem} == {}


@pytest.mark.parametrize('document', DOCUMENTS, ids=name)
def test_shell_blocks_parse(document):
    for block in code_blocks(document, *SHELL):
        done = subprocess.run(['bash', '-n'], input=block, capture_output=True, text=True)
        assert done.returncode == 0, f'{done.stderr}\n{block}'


@pytest.mark.parametrize(
    ('command', 'part'),
    [
        ('python tools/train.py configs/lavit_s_in1k.py --rezume', 'rezume'),
        ('python tools/test.py configs/lavit_s_in1k.py', 'checkpoint'),
        ('python tools/trian.py configs/lavit_s_in1k.py', 'no file'),
        ('tools/dist_train.sh configs/lavit_s_in1k.py', 'GPUS'),
        ('tools/dist_test.sh CONFIG CHECKPOINT 8 --ttta', 'ttta'),
        ('GPUS=8 tools/slurm_train.sh PARTITION NAME CONFIG DIR --amp --fp16', 'fp16'),
        ('python -m mmlavit.no_module', 'no module'),
        ('make dmo', 'dmo'),
        ('make demo TSK=detection', 'TSK'),
        ('pip install --no-isolation x', 'no-isolation'),
        ('pip install -r requirements/none.txt', 'none.txt'),
        ('no-such-program --help', 'no-such-program'),
    ],
)
def test_mistakes_are_found(command, part, monkeypatch, capsys):
    """The check itself."""
    (words,) = split(command)
    try:
        problem = check(words, monkeypatch, capsys)
    except ModuleNotFoundError as error:  # the parent of a module that is not there
        problem = str(error)
    assert part in problem


def test_commands_are_found():
    """The search finds what stands in blocks, in tables and in indented blocks."""
    found = [command for document in DOCUMENTS for command in commands(document)]
    assert ['make', 'demo'] in found
    assert ['python', 'tools/dataset_converters/handwritten.py'] in found
    assert ['tools/dist_train.sh', 'configs/mask_rcnn_lavit_s.py', '8'] in found
