"""A list that can be read whatever happens while it is written."""

import json
import os
import random
import resource
import signal
import time

import pytest

from mmlavit.errors import UserError
from mmlavit.utils.json_list import JsonList, read_entries

ENTRY = dict(picture='bücher/a.png', classes=[dict(score=0.5)])


def test_whole_after_each_entry(tmp_path):
    path = tmp_path / 'list.json'
    with JsonList(path) as records:
        for number in range(4):
            assert json.loads(path.read_bytes()) == read_entries(path) == [ENTRY] * number
            records.append(ENTRY)
    assert path.read_text().count('\n') == 6  # an entry a line


def test_continues(tmp_path):
    path = tmp_path / 'list.json'
    with JsonList(path, [ENTRY, ENTRY]) as records:
        assert json.loads(path.read_bytes()) == [ENTRY] * 2
        records.append(ENTRY)
    assert json.loads(path.read_bytes()) == [ENTRY] * 3


@pytest.mark.parametrize('cut', [1, 2, 3, 4, 20])
def test_cut_off(tmp_path, cut):
    """Lines before the last are there whatever is missing of it."""
    path = tmp_path / 'list.json'
    with JsonList(path, [ENTRY, ENTRY]):
        pass
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_entries(path) == [ENTRY] * (2 if cut <= 3 else 1)


def test_no_list(tmp_path):
    assert read_entries(tmp_path / 'none.json') == []
    for text in ('a diary\nof mine\n', '[\n{"a": 1},\nof mine\n]\n', 'a diary'):
        (tmp_path / 'other.json').write_text(text)
        with pytest.raises(UserError, match='other.json is not a list of predictions'):
            read_entries(tmp_path / 'other.json')


def test_killed(tmp_path):
    """Ten times, at a random moment: an entry that was being written may be cut off, those before are there."""
    path = tmp_path / 'list.json'
    rng = random.Random(0)
    for _ in range(10):
        written, tell = os.pipe()
        child = os.fork()
        if child == 0:
            with JsonList(path) as records:
                while True:
                    records.append(dict(mask=list(range(rng.randrange(5000)))))
                    os.write(tell, b'.')
        os.close(tell)
        time.sleep(rng.uniform(0.02, 0.1))
        count = len(os.read(written, 1 << 16))  # at least one
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(written)
        entries = read_entries(path)
        assert len(entries) >= count > 0
        assert all(entry['mask'] == list(range(len(entry['mask']))) for entry in entries)


def test_full_disk(tmp_path):
    """As a limit on the size of files, which ends a write in the middle, too."""
    path = tmp_path / 'list.json'
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with JsonList(path) as records:
        records.append(ENTRY)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
            with pytest.raises(UserError, match='list.json was not written: File too large; it has the entries before'):
                records.append(dict(long='x' * 1000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert json.loads(path.read_bytes()) == [ENTRY]
        records.append(ENTRY)
    assert json.loads(path.read_bytes()) == [ENTRY] * 2
