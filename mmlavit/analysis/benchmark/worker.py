"""One backbone in a process of its own, which runs it when told and sleeps otherwise."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmlavit.utils.allocator import keep_freed_memory

from ..flops import count_complexity
from .runtimes import RUNTIMES
from .subjects import InputSize, Subject

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}

# After a turn, until the threads that have worked are asleep; see _environment.
_PAUSE_SECONDS = 0.05
# Characters of an error that are reported.
_LENGTH = 160


@dataclass(frozen=True)
class Settings:
    """How backbones are run.

    Args:
        mode (str): 'inference', or 'train': forward and backward in training mode, without an optimizer.
        dtype (str): 'fp32', or 'bf16' or 'fp16' by autocast.
        device (str): 'cpu' or 'cuda'.
        threads (int): CPU threads.
        warmup (int): Untimed iterations at the size of the input.
        memory_base (int): Side of the square image, batch 1, that a backbone has seen when its memory begins to
            count. CPU only.
    """

    mode: str = 'inference'
    dtype: str = 'fp32'
    device: str = 'cpu'
    threads: int = 1
    warmup: int = 2
    memory_base: int = 224


class WorkerError(Exception):
    """A worker could not do what it was asked, and has ended; the message says why."""


class Worker:
    """A process with a :class:`Runner`.

    Args:
        subject (Subject): The backbone.
        size (InputSize): The input.
        settings (Settings): How to run it.
    """

    def __init__(self, subject: Subject, size: InputSize, settings: Settings) -> None:
        context = multiprocessing.get_context('spawn')
        self._connection, connection = context.Pipe()
        self._process = context.Process(target=_serve, args=(connection, subject, size, settings))
        with _environment(settings.threads):
            self._process.start()
        connection.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()  # it has nothing to save
        self._process.join()
        self._connection.close()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def call(self, method: str, *args: object) -> Any:
        """Call a method of the runner, and wait until the process is asleep again.

        Args:
            method (str): Name of the method.
            *args (object): Its arguments.

        Returns:
            Any: What it returned.

        Raises:
            WorkerError: If it fails.
        """
        try:
            with suppress(BrokenPipeError):  # it has ended, perhaps with an answer that says why
                self._connection.send((method, args))
            answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            answer = WorkerError(self._cause_of_death())
        if isinstance(answer, WorkerError):
            raise answer
        time.sleep(_PAUSE_SECONDS)
        return answer

    def _cause_of_death(self) -> str:
        self._process.join()
        code = self._process.exitcode
        if code == -signal.SIGKILL:
            return 'killed by SIGKILL, most likely for lack of memory'
        return f'killed by {signal.Signals(-code).name}' if code < 0 else f'ended with code {code}'


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """Set the environment that a worker starts with.

    Threads of OpenMP wait for their next piece of work by spinning, and go to sleep if none comes. Sleeping at once
    (``OMP_WAIT_POLICY=PASSIVE``) would keep idle workers off the processor, but makes small inputs about half slower
    than users see them. So threads may spin for some 10 ms, which is what GNU's OpenMP does if nobody tells it
    otherwise and Intel's if told to, and the next turn begins when that is over.
    """
    before = dict(os.environ)
    count = str(threads)
    os.environ.update(OMP_NUM_THREADS=count, MKL_NUM_THREADS=count, KMP_BLOCKTIME='10')
    for name in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT'):
        os.environ.pop(name, None)
    # Ctrl-C reaches all processes of a terminal, and it is the parent that ends the others.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        os.environ.clear()
        os.environ.update(before)


def _serve(connection: Connection, subject: Subject, size: InputSize, settings: Settings) -> None:
    """Build a runner and call the methods that the parent names, until it is gone or something fails."""
    try:
        runner = Runner(subject, size, settings)
        while True:
            method, args = connection.recv()
            connection.send(getattr(runner, method)(*args))
    except EOFError:
        pass
    except Exception as error:  # whatever it is, it belongs into the table
        text = f'{type(error).__name__}: {" ".join(str(error).split())}'
        connection.send(WorkerError(text if len(text) <= _LENGTH else f'{text[: _LENGTH - 3]}...'))


class Runner:
    """One backbone on one input; :meth:`warm_up` comes first.

    Args:
        subject (Subject): The backbone.
        size (InputSize): The input.
        settings (Settings): How to run it.
    """

    def __init__(self, subject: Subject, size: InputSize, settings: Settings) -> None:
        self.size = size
        self.settings = settings
        self.device = torch.device(settings.device)
        if self.device.type == 'cpu':
            keep_freed_memory()  # for any backbone, as LaViT asks for it
        # torch computes convolutions in TF32 by default, but not what transformers consist of.
        torch.backends.cudnn.allow_tf32 = False
        torch.set_num_threads(settings.threads)
        torch.manual_seed(0)
        self.model = subject.build(size.height, size.width).to(self.device)
        self.model.train(settings.mode == 'train')  # not chained: OpenMMLab's often return nothing
        # To export or to compile takes more memory than to run, and what is built for one size has no other to begin
        # with.
        self.has_base = subject.runtime == 'eager' and not subject.one_size
        self.runtime = RUNTIMES[subject.runtime](self.model, settings.threads)

    def warm_up(self) -> None:
        """Run at the memory base, from where memory counts, then at the size of the input."""
        side = self.settings.memory_base
        if self.has_base:
            self._step(torch.rand(1, 3, side, side, device=self.device))
        if self.device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats()
        else:
            self.base_memory = _peak_resident()
        size = self.size
        self.images = torch.rand(size.batch, 3, size.height, size.width, device=self.device)
        for _ in range(self.settings.warmup):
            self._step(self.images)
        self._release_memory()

    def run(self, iterations: int) -> list[float]:
        """Take a turn: run once more than asked, and return the seconds that each iteration but the first took.

        In the first, memory is taken from the system again, caches fill and clocks go up.
        """
        seconds = [self._step(self.images) for _ in range(iterations + 1)]
        self._release_memory()
        return seconds[1:]

    def finish(self) -> dict[str, float]:
        """Measure what is known at the end.

        Returns:
            dict[str, float]: 'memory_mb', the peak; on the CPU, what it grew by since the backbone was built and run
            once, and None if it was exported or compiled, or is built for one size. 'params' and 'macs', the parameters
            and the multiply-adds of one image in inference.
        """
        # Memory first: counting runs the backbone in another way.
        on_gpu = self.device.type == 'cuda'
        memory = torch.cuda.max_memory_allocated() / 1e6 if on_gpu else _peak_resident() - self.base_memory
        memory = memory if on_gpu or self.has_base else None
        # Counted on the CPU for every device: kernels of a GPU pad some operands, which is no work of the model.
        self.model.eval()  # not chained, as above
        model, image = self.model.cpu(), self.images[:1].cpu()
        counted = count_complexity(model, lambda: model(image))
        return dict(memory_mb=memory, params=counted.params, macs=counted.macs)

    def profile(self, iterations: int, rows: int) -> str:
        """Return a table of the operators that took most of the time of some iterations."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == 'cuda':
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._step(self.images)  # see run
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', '.*Profiler clears events')  # of cycles, and there is one
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
                maps = self.runtime(images)
            sum(x.float().square().sum() for x in maps).backward()
        else:
            with torch.inference_mode(), self._autocast():
                self.runtime(images)
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


def _peak_resident() -> float:
    """Return the largest resident memory of this process until now, in MB."""
    # On Linux ru_maxrss starts at what the parent had when it made this process; VmHWM is this program's alone.
    status = Path('/proc/self/status')
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith('VmHWM'))
        return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
