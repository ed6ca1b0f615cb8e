"""Files that are there whole or not at all."""

import errno
import os
import subprocess
import sys

import pytest
from mmengine.fileio import dump, get_file_backend, put
from mmengine.runner.checkpoint import save_checkpoint

from mmlavit.errors import UserError
from mmlavit.utils.local_files import WholeFileBackend, remove_partial_files, require_folder, write_file

SIZE = 4_000_000
# In a process of its own, which has no threads when it forks: writers of a file, each killed after a while.
KILLER = f"""
import itertools, os, signal, sys, time
from mmlavit.utils.local_files import write_file
path = sys.argv[1]
for i in range(20):
    child = os.fork()
    if child == 0:
        for letter in itertools.cycle(b'abcdefgh'):
            write_file(path, bytes([letter]) * {SIZE})
    while not os.path.exists(path):
        time.sleep(0.001)
    time.sleep(0.002 * i)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    content = open(path, 'rb').read()
    print(len(content), len(set(content)), len([name for name in os.listdir('.') if name.endswith('.partial')]))
"""


def test_mmengine_writes_through_it(tmp_path):
    import mmlavit  # noqa: F401

    assert type(get_file_backend(str(tmp_path))) is WholeFileBackend
    for path, write in {
        'new/a.pth': lambda path: save_checkpoint(dict(meta={}, state_dict={}), path),
        'b.bin': lambda path: put(b'1', path),
        'c.json': lambda path: dump({}, path),
    }.items():
        write(str(tmp_path / path))
        assert (tmp_path / path).stat().st_size > 0
        assert [file.name for file in (tmp_path / path).parent.glob(f'*{(tmp_path / path).suffix}')] == [
            (tmp_path / path).name
        ]
    assert not list(tmp_path.rglob('*.partial'))


def test_names_of_any_length_and_links(tmp_path):
    name = 'ж' * 120 + '.bin'
    write_file(tmp_path / name, b'1')
    (tmp_path / 'disk').mkdir()
    link = tmp_path / 'link.bin'
    link.symlink_to('disk/real.bin')
    for content in (b'2', b'3'):  # at first, the link points to nothing
        write_file(link, content)
        assert link.is_symlink() and (tmp_path / 'disk/real.bin').read_bytes() == content
    assert (tmp_path / name).read_bytes() == b'1' and not list(tmp_path.rglob('*.partial'))


def test_permissions_are_those_of_any_new_file(tmp_path):
    write_file(tmp_path / 'a', b'1')
    (tmp_path / 'b').write_bytes(b'1')
    assert (tmp_path / 'a').stat().st_mode == (tmp_path / 'b').stat().st_mode


def test_a_full_disk(tmp_path, monkeypatch):
    path = tmp_path / 'epoch_1.pth'
    write_file(path, b'old')

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(UserError, match='epoch_1.pth was not written: No space left on device; a file that was there'):
        write_file(path, b'new')
    assert path.read_bytes() == b'old' and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='was not written: (Not a directory|File exists)'):
        write_file(tmp_path / 'file/epoch_1.pth', b'new')


@pytest.mark.parametrize('place', ['file/run', '/proc', '/proc/run'])
def test_a_work_dir_that_cannot_be_written_to(place, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot write to the folder .*; choose another with --work-dir'):
        require_folder(tmp_path / place, '--work-dir')


def test_a_work_dir_is_made_and_left_as_it_is(tmp_path):
    for _ in range(2):
        require_folder(tmp_path / 'new/run', '--work-dir')
    assert not list((tmp_path / 'new/run').iterdir())


def test_what_killed_processes_leave_is_removed(tmp_path):
    write_file(tmp_path / 'epoch_1.pth', b'1')
    (tmp_path / '.epoch_2.pth.abc.partial').write_bytes(b'1')
    remove_partial_files(tmp_path)
    remove_partial_files(tmp_path / 'nowhere')
    assert [file.name for file in tmp_path.iterdir()] == ['epoch_1.pth']


def test_killed_while_writing(tmp_path):
    """The file is one of those that were written, whole, whenever the process ends."""
    done = subprocess.run(
        [sys.executable, '-c', KILLER, str(tmp_path / 'file')], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert [one[:2] for one in found] == [(SIZE, 1)] * 20
    assert found[-1][2] > 0  # some were killed while they wrote
