"""Mistakes end in one line, bugs in a trace."""

import errno
import os

import pytest

from mmlavit import errors
from mmlavit.environment import EnvironmentProblem
from mmlavit.errors import ConfigError, UserError, one_line_errors


@pytest.mark.parametrize('error', [UserError, ConfigError, EnvironmentProblem])
def test_one_line(error, capsys):
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        raise error('the thing is missing; get it')
    assert stopped.value.code == errors.USER_ERROR_CODE
    assert capsys.readouterr().err == 'error: the thing is missing; get it\n'


@pytest.mark.parametrize(('code', 'shown'), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.ENOENT, False)])
def test_full_disk(code, shown, capsys):
    with pytest.raises(SystemExit if shown else OSError), one_line_errors():
        raise OSError(code, os.strerror(code), 'some/file')
    assert ('some/file' in capsys.readouterr().err) == shown


def test_bugs_pass():
    with pytest.raises(ZeroDivisionError), one_line_errors():
        1 / 0  # noqa: B018


def test_other_processes_wait_for_the_first(monkeypatch, capsys):
    slept = []
    monkeypatch.setattr(errors.time, 'sleep', slept.append)
    for rank in (0, 1):
        with pytest.raises(SystemExit), one_line_errors(rank):
            raise UserError('wrong')
    assert len(slept) == 1
    # The launcher usually ends them in their sleep; should the first have no such error, they tell.
    assert capsys.readouterr().err.count('error: wrong') == 2
