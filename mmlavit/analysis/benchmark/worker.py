"""The process that runs one backbone: ``python -m mmlavit.analysis.benchmark.worker JSON``.

It reads commands from stdin and answers on stdout, one JSON object per line, and works only between the two. It ends
when stdin does, and after any error, which is its last answer.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from ..flops import count_complexity
from .subjects import InputSize, Subject

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}


@dataclass(frozen=True)
class Settings:
    """How backbones are run.

    Args:
        mode: 'inference', or 'train': forward and backward in training mode, without an optimizer.
        dtype: 'fp32', or 'bf16' or 'fp16' by autocast.
        device: 'cpu' or 'cuda'.
        threads: CPU threads.
        warmup: Untimed iterations at the size of the input.
        memory_base: Side of the square image, batch 1, that a backbone has seen when its memory begins to count. CPU
            only.
    """

    mode: str = 'inference'
    dtype: str = 'fp32'
    device: str = 'cpu'
    threads: int = 1
    warmup: int = 2
    memory_base: int = 224


@dataclass(frozen=True)
class Task:
    """What a worker is for.

    Args:
        subject: The backbone.
        size: The input.
        settings: How to run it.
    """

    subject: Subject
    size: InputSize
    settings: Settings

    def to_json(self) -> str:
        """Write as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Task:
        """Read what :meth:`to_json` wrote."""
        data = json.loads(text)
        return cls(Subject(**data['subject']), InputSize(**data['size']), Settings(**data['settings']))


class Runner:
    """One backbone on one input, built and warmed up.

    Args:
        task: What to run.
    """

    def __init__(self, task: Task) -> None:
        self.settings = settings = task.settings
        self.device = torch.device(settings.device)
        torch.set_num_threads(settings.threads)
        torch.manual_seed(0)
        self.model = task.subject.build().to(self.device)
        self.model.train(settings.mode == 'train')  # not chained: OpenMMLab's often return nothing
        # Two sizes are run, and the second must not be compiled for any size.
        self.call: Callable = torch.compile(self.model, dynamic=False) if task.subject.compile else self.model
        side = settings.memory_base
        self._step(torch.rand(1, 3, side, side, device=self.device))
        self.base_memory = self._reset_peak_memory()
        self.images = torch.rand(task.size.batch, 3, task.size.height, task.size.width, device=self.device)
        for _ in range(settings.warmup):
            self._step(self.images)
        self._release_memory()

    def run(self, iterations: int) -> list[float]:
        """Take a turn: run once more than asked, and return the seconds that each iteration but the first took.

        In the first, memory is taken from the system again, caches fill and clocks go up.
        """
        seconds = [self._step(self.images) for _ in range(iterations + 1)]
        self._release_memory()
        return seconds[1:]

    def peak_memory(self) -> float:
        """Return the peak memory in MB; on the CPU, what it grew by since the backbone was built and run once."""
        if self.device.type == 'cuda':
            return torch.cuda.max_memory_allocated() / 1e6
        return _peak_resident() - self.base_memory

    def complexity(self) -> tuple[int, int]:
        """Return the parameters, and the multiply-adds of one image of the input in inference."""
        self.model.eval()
        counted = count_complexity(self.model, lambda: self.model(self.images[:1]))
        return counted.params, counted.macs

    def profile(self, iterations: int, rows: int) -> str:
        """Return a table of the operators that took most of the time of some iterations."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == 'cuda':
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._step(self.images)  # see run
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(iterations):
                self._step(self.images)
        sort_by = f'self_{self.device.type}_time_total'
        return profiler.key_averages().table(sort_by=sort_by, row_limit=rows, max_name_column_width=48)

    def _step(self, images: Tensor) -> float:
        self._synchronize()
        start = time.perf_counter()
        if self.settings.mode == 'train':
            self.model.zero_grad(set_to_none=True)
            with self._autocast():
                maps = self.call(images)
            sum(x.float().square().sum() for x in maps).backward()
        else:
            with torch.inference_mode(), self._autocast():
                self.call(images)
        self._synchronize()
        return time.perf_counter() - start

    def _autocast(self) -> AbstractContextManager:
        dtype = DTYPES[self.settings.dtype]
        return nullcontext() if dtype is torch.float32 else torch.autocast(self.device.type, dtype)

    def _synchronize(self) -> None:
        if self.device.type == 'cuda':
            torch.cuda.synchronize()

    def _release_memory(self) -> None:
        """Give memory that is only kept for later back to the system: other backbones are waiting for it."""
        if self.device.type == 'cuda':
            torch.cuda.empty_cache()
        elif sys.platform == 'linux':
            # glibc keeps what was freed in pieces of some MB, over 1 GB after a training step.
            with suppress(AttributeError):  # another C library
                ctypes.CDLL(None).malloc_trim(0)

    def _reset_peak_memory(self) -> float:
        """Begin to count; return the peak until now in MB."""
        if self.device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats()
            return 0.0
        return _peak_resident()


def _peak_resident() -> float:
    """Return the largest resident memory of this process until now, in MB."""
    # On Linux ru_maxrss starts at what the parent had when it made this process; VmHWM is this program's alone.
    status = Path('/proc/self/status')
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith('VmHWM'))
        return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


@contextmanager
def _answers() -> Iterator[TextIO]:
    """Yield where answers go: to stdout, which from now on is stderr to everybody else, libraries that print included.

    The descriptor is not inherited, so that no process started here can keep the parent waiting.
    """
    sys.stdout.flush()
    with os.fdopen(os.dup(1), 'w') as answers:
        os.dup2(2, 1)
        yield answers


def _serve(task: Task) -> Iterator[Mapping[str, object]]:
    """Yield the answers to the commands on stdin, the first when all is ready for them."""
    runner = Runner(task)
    yield {'ready': True}
    for line in sys.stdin:
        command = json.loads(line)
        if command['do'] == 'run':
            yield {'seconds': runner.run(command['iterations'])}
        elif command['do'] == 'profile':
            yield {'table': runner.profile(command['iterations'], command['rows'])}
        else:
            memory = runner.peak_memory()  # first: counting runs the backbone in another way
            params, macs = runner.complexity()
            yield {'memory_mb': memory, 'params': params, 'macs': macs}


def main() -> None:
    """Serve until stdin ends."""
    with _answers() as answers:
        try:
            for answer in _serve(Task.from_json(sys.argv[1])):
                print(json.dumps(answer), file=answers, flush=True)
        except Exception as error:  # whatever it is, it belongs into the table
            text = ' '.join(str(error).split())
            print(json.dumps({'error': f'{type(error).__name__}: {text}'}), file=answers, flush=True)


if __name__ == '__main__':
    main()
