"""What toolboxes say when they are imported and built, and what of it is shown."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from mmlavit.environment import SCOPES
from mmlavit.errors import EnvironmentProblem
from mmlavit.utils.toolbox import load_toolbox

ROOT = Path(__file__).parents[2]
USE = """
import sys
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, VISUALIZERS, init_default_scope
from mmlavit.utils.toolbox import load_toolbox
scope, config = sys.argv[1:]
load_toolbox(scope)
init_default_scope(scope)
cfg = Config.fromfile(config)
MODELS.build(cfg.model)
VISUALIZERS.build(dict(cfg.visualizer, vis_backends=[], name='quiet'))
HOOKS.build(cfg.default_hooks.visualization)
"""


@pytest.mark.parametrize(('scope', 'name'), [('mmdet', 'mask_rcnn'), ('mmseg', 'upernet'), ('mmpretrain', 'classify')])
def test_says_nothing(scope, name):
    command = [sys.executable, '-c', USE, scope, f'configs/handwritten/{name}_lavit_nano.py']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


def test_other_messages_are_shown():
    name = 'mmseg.engine.hooks.visualization_hook'
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter('always')
        load_toolbox('mmseg')
        for module, text in ((name, 'The draw is False, so'), (name, 'something else'), ('mine', 'The draw is False')):
            warnings.warn_explicit(text, UserWarning, 'file.py', 1, module)
    assert [str(warning.message) for warning in shown] == ['something else', 'The draw is False']


def test_printed_lines_are_shown(monkeypatch, capsys):
    def say(name):
        print('before\nCould not import OneDL. Skipping OneDL datasets.\nafter')

    monkeypatch.setattr('mmlavit.utils.toolbox.import_module', say)
    load_toolbox('mmdet')
    assert capsys.readouterr().out == 'before\nafter\n'


def test_missing_toolbox(monkeypatch):
    def missing(scope):
        raise EnvironmentProblem(f'{scope} is not installed')

    monkeypatch.setattr('mmlavit.utils.toolbox.check_environment', missing)
    for scope in SCOPES:
        with pytest.raises(EnvironmentProblem, match=scope):
            load_toolbox(scope)
