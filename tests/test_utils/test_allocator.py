"""What the allocator does is counted by the system: pages that it had to map and clear (minor faults)."""

import os
import platform
import subprocess
import sys

import pytest

from mmlavit.utils.allocator import keep_freed_memory

glibc = pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='about the allocator of glibc')

FORWARDS = """
import resource, torch
from mmlavit import LaViT
def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
model, images = LaViT('nano').eval(), torch.rand(1, 3, 304, 400)
with torch.inference_mode():
    for _ in range(4):
        model(images)
    before = pages()
    for _ in range(5):
        model(images)
print((pages() - before) / 5)
"""


def run(code, **variables):
    """Run code in a process of its own, with these variables and none of the allocator's."""
    kept = {name: value for name, value in os.environ.items() if 'MALLOC' not in name and name != 'GLIBC_TUNABLES'}
    command = [sys.executable, '-c', code]
    return subprocess.run(command, env={**kept, **variables}, check=True, capture_output=True, text=True).stdout.strip()


@glibc
def test_a_forward_needs_no_new_pages():
    assert float(run(FORWARDS)) < 200
    # The maps of one layer take about 3,000 pages, which this setting of the user gives back each time.
    assert float(run(FORWARDS, MALLOC_TRIM_THRESHOLD_='131072')) > 2000


CHANGED = 'from mmlavit.utils.allocator import keep_freed_memory as f; print(f(), f())'


@glibc
def test_the_users_setting_stays():
    assert run(CHANGED) == 'True True'
    assert run(CHANGED, MALLOC_MMAP_THRESHOLD_='1000000') == 'False False'
    assert run(CHANGED, GLIBC_TUNABLES='glibc.malloc.trim_threshold=1000000') == 'False False'


@pytest.mark.parametrize('target, value', [('ctypes.CDLL', lambda name: object()), ('sys.platform', 'darwin')])
def test_other_c_libraries(target, value, monkeypatch):
    monkeypatch.setattr(f'mmlavit.utils.allocator.{target}', value)
    assert not keep_freed_memory.__wrapped__()
