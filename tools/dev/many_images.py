#!/usr/bin/env python
"""Have image_demo.py predict on many images, some of them broken, kill it now and then, and look what is missing."""

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')

import cv2
import numpy as np

from mmlavit.errors import UserError, one_line_errors
from mmlavit.utils.json_list import read_entries

ROOT = Path(__file__).resolve().parents[2]
BROKEN_EACH = 100  # one of so many images


def write_images(folder: Path, number: int) -> set[str]:
    """Write images of noise at several scales, 64 to 160 pixels high and wide; return the names of the broken ones."""
    rng, broken = np.random.default_rng(0), set()
    folder.mkdir()
    for index in range(number):
        size = rng.integers(64, 161, 2).tolist()
        image = sum(cv2.resize(rng.uniform(0, 85, (side, side, 3)), size) for side in (4, 16, 64))
        name = f'{index:05}{".png" if index % 3 else ".jpg"}'
        content = cv2.imencode(name[-4:], image.astype(np.uint8))[1].tobytes()
        if index % BROKEN_EACH == BROKEN_EACH // 2:
            broken.add(name)
            content = (b'', b'no picture', content[: len(content) // 2], content[: len(content) - 20])[len(broken) % 4]
        (folder / name).write_bytes(content)
    return broken


def run(command: list[str], log: Path, kill_after: float | None) -> int:
    """Run a command to its end, or kill it so many seconds after it printed its first line; return its exit code."""
    with log.open('w') as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        if kill_after is not None:
            while process.poll() is None and ' -> ' not in log.read_text():
                time.sleep(0.02)
            time.sleep(kill_after)
            process.send_signal(signal.SIGKILL)
        return process.wait()


def find_faults(entries: list[dict], number: int, broken: set[str], drawn: Path) -> list[str]:
    """Compare a list of predictions with the images that there are."""
    names = [entry['picture'] for entry in entries]
    failed = {entry['picture'] for entry in entries if 'error' in entry}
    faults = (
        []
        if len(names) == len(set(names)) == number
        else [f'{len(set(names))} of {number} images, {len(names)} entries']
    )
    faults += [f'{name} is not listed as broken' for name in sorted(broken - failed)]
    faults += [f'{name} is listed as broken' for name in sorted(failed - broken)]
    return faults + [f'{name} is not drawn' for name in names if name not in failed and not (drawn / name).is_file()]


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('model', help='config file, or an exported model (.onnx)')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint file, for a config')
    parser.add_argument('--runtime', choices=['onnxruntime', 'openvino'], help='for an exported model')
    parser.add_argument('--number', type=int, default=2000, help='of images; default: %(default)s')
    parser.add_argument('--kills', type=int, default=5, help='default: %(default)s')
    return parser.parse_args()


def main() -> None:
    """Predict, kill, go on, look."""
    args = parse_args()
    rng, start = random.Random(0), time.monotonic()
    with one_line_errors(), tempfile.TemporaryDirectory() as folder:
        pictures, out, log = Path(folder, 'pictures'), Path(folder, 'out'), Path(folder, 'log')
        broken = write_images(pictures, args.number)
        command = [sys.executable, str(ROOT / 'tools/image_demo.py'), str(pictures), args.model]
        command += [args.checkpoint] * bool(args.checkpoint) + ['--out-dir', str(out), '--device', 'cpu', '--resume']
        command += ['--runtime', args.runtime] * bool(args.runtime)
        for _ in range(args.kills):
            if run(command, log, rng.uniform(0, 3)) != -signal.SIGKILL:
                raise UserError(f'it ended before it was killed: {log.read_text()[-300:]}; take more images')
            there = read_entries(out / 'predictions.json')
            print(f'killed; {len(there)} images are in the list', flush=True)
        code = run(command, log, None)
        entries = json.loads((out / 'predictions.json').read_text())
        faults = find_faults(entries, args.number, broken, out)
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    print(f'{args.number} images, {len(broken)} of them broken, {args.kills} kills: exit code {code}, ', end='')
    print(f'{time.monotonic() - start:.0f} s, {memory:.0f} MB at most')
    print(
        '\n'.join(faults)
        or f'every image is in the list once, and the {len(broken)} broken ones are those with an error'
    )
    if faults or code != (1 if broken else 0):
        raise SystemExit(1)


if __name__ == '__main__':
    main()
