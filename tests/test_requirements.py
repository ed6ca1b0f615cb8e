"""The lock file fits the requirements that it was made from, and says nothing about where it was made."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / 'requirements'
LOCK = (FOLDER / 'lock.txt').read_text()
# An entry: name, version and, for some, a marker; then hashes and what requires it.
ENTRIES = re.findall(r'^([a-z0-9._-]+)==(\S+)(?: ; [^\n]*?)? \\\n((?:    .*\n)+)', LOCK, re.MULTILINE)
SOURCES = re.findall(r'^-r (\S+)$', (FOLDER / 'lock.in').read_text(), re.MULTILINE)


def requirements(file):
    """Names and, where they are pinned, versions."""
    for line in (FOLDER / file).read_text().splitlines():
        if line and not line.startswith(('#', './', '-r')):
            name, version = re.fullmatch(r'([\w.-]+)(?:==(\S+))?(?:[<>=!].*)?', line).groups()
            yield name.lower().replace('_', '-'), version


def test_every_line_is_an_entry_with_hashes():
    lines = [line for line in LOCK.splitlines() if line and not line.startswith((' ', '#'))]
    assert len(lines) == len(ENTRIES) > 100
    for name, _, rest in ENTRIES:
        assert re.match(r'    --hash=sha256:[0-9a-f]{64}', rest), name
        assert not re.search(r'md5|sha1:', rest)


@pytest.mark.parametrize('file', [*SOURCES, 'lock.in'])
def test_pins(file):
    """Each requirement is there, in the version that it is pinned to."""
    locked = {}
    for name, version, _ in ENTRIES:
        locked.setdefault(name, set()).add(version)
    for name, version in requirements(file):
        assert name in locked, f'{name} of {file}: `make lock` adds it'
        assert version is None or locked[name] == {version}, f'{name} of {file}: `make lock` updates it'


def test_sources_are_all_of_the_default_stack():
    """Those of the other stack and of the environment's own check are left out."""
    assert {f'{source}' for source in SOURCES} == {path.name for path in FOLDER.glob('*.txt')} - {
        'lock.txt',
        'openmmlab.txt',
    }


def test_no_place():
    """No address, no folder, and no build of torch that the public index does not have."""
    assert '://' not in LOCK and '@ ' not in LOCK
    assert not re.search(r'^-|\s/\w|\+cpu|\+cu\d', LOCK, re.MULTILINE)
