"""Exported models under load: many threads, and images that would need too much memory."""

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from exportable import ROOT, make_image

from mmlavit_serve import Predictor, UserError

RUNTIMES = ['onnxruntime', 'openvino']


@pytest.mark.parametrize('runtime', RUNTIMES)
def test_eight_threads(runtime, exported):
    """Each image gives what one thread gives for it, to the last digit."""
    pytest.importorskip(runtime)
    predictor = Predictor(exported('cascade')[2], runtime=runtime, score_thr=0.06, threads=1)
    sizes = np.random.default_rng(0).integers(65, 161, (8, 2)).tolist()
    images = [make_image(tuple(size), seed) for seed, size in enumerate(sizes)]
    expected = [predictor.predict(image).to_json() for image in images]
    assert len(set(expected)) > 4  # images are told apart
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda image: predictor.predict(image).to_json(), images * 3))
    assert found == expected * 3


MEASURE = """
import re, sys
import numpy as np
from mmlavit_serve import Predictor
from mmlavit_serve.resizing import shape_after_all

def memory(name):
    return int(re.search(name + r':\\s+(\\d+)', open('/proc/self/status').read())[1]) * 1024

predictor = Predictor(sys.argv[1], sys.argv[2] or None, runtime=sys.argv[3], threads=1, memory_limit=1e15)
rng = np.random.default_rng(0)
image = rng.integers(0, 256, (64, 96, 3), np.uint8).repeat(16, 0).repeat(16, 1)
predictor.predict(image[:160, :160])
before = memory('VmRSS')
predictor.predict(image)
needed = predictor.model.memory.at(shape_after_all(predictor.model.transforms, image.shape[:2]), image.shape[:2])
print(needed / (memory('VmHWM') - before))
"""


@pytest.mark.parametrize(
    ('kind', 'runtime'),
    [('upernet', runtime) for runtime in RUNTIMES] + [('retinanet', runtime) for runtime in [*RUNTIMES, 'torch']],
)
def test_estimate_of_memory(kind, runtime, exported, tmp_path):
    """Against the peak of a process with an image of 1024x1536: not much less than it, nor many times as much."""
    cfg, checkpoint, file = exported(kind)
    pytest.importorskip(runtime)
    model, weights = (file, '') if runtime != 'torch' else (tmp_path / 'config.py', checkpoint)
    cfg.dump(tmp_path / 'config.py')
    # glibc's allocator gives large pieces back at once, so that the peak before does not hide this one.
    env = dict(os.environ, PYTHONPATH=str(ROOT), MALLOC_MMAP_THRESHOLD_='1000000', OMP_NUM_THREADS='1')
    command = [sys.executable, '-c', textwrap.dedent(MEASURE), model, weights, runtime]
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, check=True)
    assert 0.6 < float(done.stdout.splitlines()[-1]) < 6  # after what toolboxes log


def test_refused(exported):
    """Before anything is computed, in one line."""
    predictor = Predictor(exported('upernet')[2], memory_limit=1e9)
    predictor.predict(make_image((96, 128)))
    with pytest.raises(UserError, match='the image is 4000x4000 and needs about .* GB of memory, but 1.0 GB are'):
        predictor.predict(np.zeros((4000, 4000, 3), np.uint8))


def test_masks_are_refused(exported):
    """How many there are is known only after the network."""
    file = exported('cascade')[2]  # whose pipeline makes images small
    image = cv2.resize(make_image((160, 160)), (1600, 1600))
    count = len(Predictor(file, score_thr=0.06).predict(image))
    assert count > 3
    assert len(Predictor(file, score_thr=0.06, memory_limit=count * 1600 * 1600).predict(image)) == count
    with pytest.raises(UserError, match='the image is 1600x1600 and needs about'):
        Predictor(file, score_thr=0.06, memory_limit=count * 1600 * 1600 - 1).predict(image)
