"""What is available, by files as Linux shows them, and what an image needs."""

import pytest

from mmlavit_serve import UserError, memory
from mmlavit_serve.memory import MemoryNeed, available_memory, require_memory

GB = 1 << 30


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Return a function that writes the files of /proc and /sys."""
    monkeypatch.setattr(memory, '_PROC', tmp_path / 'proc')
    monkeypatch.setattr(memory, '_CGROUPS', tmp_path / 'groups')

    def write(**files):
        for name, content in files.items():
            path = tmp_path / name.replace('__', '/').replace('_DOT_', '.')
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    write(proc__meminfo=f'MemTotal: 99999999 kB\nMemFree: 5 kB\nMemAvailable:   {8 * GB // 1024} kB\n')
    return write


def group(folder, limit, used, cached=0, names=('memory_DOT_max', 'memory_DOT_current')):
    prefix = f'groups__{folder}__' if folder else 'groups__'
    stat = f'anon 5\ninactive_file {cached}\n'
    return {prefix + names[0]: f'{limit}\n', prefix + names[1]: f'{used}\n', prefix + 'memory_DOT_stat': stat}


def test_machine(system):
    assert available_memory() == 8 * GB


def test_container(system):
    """Version 2: its own files lie at the root; cached files make room."""
    system(proc__self__cgroup='0::/\n', **group('', 4 * GB, 3 * GB, GB))
    assert available_memory() == 2 * GB


def test_no_limit(system):
    system(proc__self__cgroup='0::/\n', **group('', 'max', 3 * GB))
    assert available_memory() == 8 * GB


def test_group_above(system):
    """A job of a batch system: the limit is that of the group above the one of the step."""
    system(proc__self__cgroup='0::/slurm/job/step\n', **group('slurm__job', 6 * GB, 5 * GB))
    system(**group('slurm__job__step', 'max', GB))
    assert available_memory() == GB


def test_version_1(system):
    names = ('memory_DOT_limit_in_bytes', 'memory_DOT_usage_in_bytes')
    system(proc__self__cgroup='5:cpu:/docker/a\n3:memory:/docker/a\n', **group('memory', 4 * GB, GB, names=names))
    assert available_memory() == 3 * GB


def test_other_system(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, '_PROC', tmp_path)
    assert available_memory() is None
    require_memory(1e15, (20000, 20000))  # nobody knows, so nobody is refused


def test_require(system):
    require_memory(7 * GB, (20000, 20000))
    with pytest.raises(UserError) as refused:
        require_memory(9 * GB, (20000, 10000))
    assert str(refused.value).startswith(
        'the image is 20000x10000 and needs about 9.7 GB of memory, but 8.6 GB are ava'
    )
    with pytest.raises(UserError, match='but 1.0 GB are allowed; make it smaller'):
        require_memory(2e9, (20000, 10000), 1e9)
    require_memory(9 * GB, (20000, 10000), 1e15)


def test_need():
    assert MemoryNeed(100, 3, 5).at((10, 20), (30, 40)) == 1.5 * (100 + 3 * 200) + 5 * 1200
