"""tools/misc/print_config.py prints and saves what a run would read."""

import json
from pathlib import Path

import pytest
from mmengine.config import Config
from tool_runs import call_tool

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs/handwritten/classify_lavit_nano.py'


@pytest.fixture
def print_config(monkeypatch):
    """Run the script in this process."""

    def run(*args):
        call_tool(monkeypatch, 'misc/print_config.py', *args)

    return run


@pytest.fixture
def expected():
    """The config with an option applied, as mmengine reads it."""
    cfg = Config.fromfile(CONFIG)
    cfg.model.backbone.arch = 'tiny'
    return cfg.to_dict()


OPTION = ('--cfg-options', 'model.backbone.arch=tiny')


def test_print(print_config, expected, capsys):
    print_config(CONFIG, *OPTION)
    printed = Config.fromstring(capsys.readouterr().out, '.py')
    assert printed.to_dict() == expected


@pytest.mark.parametrize('suffix', ['.py', '.json', '.yml'])
def test_save(suffix, print_config, expected, tmp_path, capsys):
    file = tmp_path / f'new/folder/a{suffix}'
    print_config(CONFIG, *OPTION, '--save-path', file)
    assert capsys.readouterr().out == f'{CONFIG} -> {file}\n'
    saved = Config.fromfile(file).to_dict()
    assert json.dumps(saved, sort_keys=True) == json.dumps(expected, sort_keys=True)  # tuples or lists


def test_a_config_is_not_replaced_by_its_own_text(print_config, tmp_path, capsys):
    file = tmp_path / 'a.py'
    file.write_text('a = 1  # why\n')
    with pytest.raises(SystemExit):
        print_config(file, '--save-path', file)
    assert 'is the config itself; expected another file' in capsys.readouterr().err
    assert file.read_text() == 'a = 1  # why\n'


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['no.py'], 'config no.py does not exist'),
        ([CONFIG, '--cfg-options', 'modle.backbone=1'], "has no 'modle'; did you mean model?"),
        ([CONFIG, '--save-path', 'a.txt'], '--save-path a.txt: expected a file ending in .py'),
    ],
)
def test_mistakes(args, message, print_config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        print_config(*args)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1
    assert message in error
    assert not list(tmp_path.iterdir())
