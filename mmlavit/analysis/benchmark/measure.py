"""Measuring backbones side by side: one process each, one of them working at a time, in turns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

import numpy as np

from .subjects import InputSize, Subject
from .worker import Settings, Task

# After a turn, until the threads that have worked are asleep; see _environment.
_PAUSE_SECONDS = 0.05


class WorkerError(Exception):
    """A worker could not do what it was asked, and has ended; the message says why."""


class Worker:
    """A process that runs one backbone when told, and else sleeps.

    Args:
        task: What it runs.
    """

    def __init__(self, task: Task) -> None:
        self._stderr = tempfile.TemporaryFile('w+', errors='replace')  # noqa: SIM115 (closed with the worker)
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'mmlavit.analysis.benchmark.worker', task.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=_environment(task.settings.threads),
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Wait until the backbone is built and warmed up.

        Raises:
            WorkerError: If that fails.
        """
        self._answer()

    def run(self, iterations: int) -> list[float]:
        """Take a turn: an untimed iteration, and some timed ones.

        Args:
            iterations: How many are timed.

        Returns:
            The seconds that each of these took.

        Raises:
            WorkerError: If that fails.
        """
        seconds = self._ask(do='run', iterations=iterations)['seconds']
        time.sleep(_PAUSE_SECONDS)
        return seconds

    def finish(self) -> dict[str, float]:
        """Ask for what is known at the end.

        Returns:
            'memory_mb', 'params' and 'macs'; see :class:`Result`.

        Raises:
            WorkerError: If that fails.
        """
        return self._ask(do='finish')

    def profile(self, iterations: int, rows: int) -> str:
        """Run some iterations under the profiler.

        Args:
            iterations: How many.
            rows: Length of the table.

        Returns:
            A table of the operators, those that took most of the time first.

        Raises:
            WorkerError: If that fails.
        """
        return self._ask(do='profile', iterations=iterations, rows=rows)['table']

    def close(self) -> None:
        """End the process."""
        with suppress(BrokenPipeError):  # it is dead already, and has not read its last command
            self._process.stdin.close()  # which asks it to end
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._stderr.close()

    def _ask(self, **command: object) -> dict:
        try:
            print(json.dumps(command), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise WorkerError(self._cause_of_death()) from None
        return self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(self._cause_of_death())
        answer = json.loads(line)
        if 'error' in answer:
            raise WorkerError(_shorten(answer['error']))
        return answer

    def _cause_of_death(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return 'killed by SIGKILL, most likely for lack of memory'
        if code < 0:
            return f'killed by {signal.Signals(-code).name}'
        self._stderr.seek(0)
        lines = self._stderr.read().split('\n')
        last = next((line for line in reversed(lines) if line.strip()), 'it printed nothing')
        return _shorten(f'ended with code {code}: {last.strip()}')


def _environment(threads: int) -> dict[str, str]:
    """Return the environment of a worker.

    Threads of OpenMP wait for their next piece of work by spinning, and go to sleep if none comes. Sleeping at once
    (``OMP_WAIT_POLICY=PASSIVE``) would keep idle workers off the processor, but makes small inputs about half slower
    than users see them. So threads may spin for some 10 ms, which is what GNU's OpenMP does if nobody tells it
    otherwise and Intel's if told to, and the next turn begins when that is over.
    """
    environment = {k: v for k, v in os.environ.items() if k not in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')}
    count = str(threads)
    return environment | {'OMP_NUM_THREADS': count, 'MKL_NUM_THREADS': count, 'KMP_BLOCKTIME': '10'}


def _shorten(text: str, length: int = 160) -> str:
    return text if len(text) <= length else f'{text[: length - 3]}...'


@dataclass
class Result:
    """What was measured of one backbone at one input.

    Args:
        subject: The backbone.
        rounds: Seconds of every timed iteration, by round.
        memory_mb: Peak memory in MB. CPU: growth of the peak resident memory since the run at the memory base; CUDA:
            peak of the memory allocated for tensors.
        params: Parameters.
        macs: Multiply-adds for one image.
        error: Why there is no more; None if all went well.
    """

    subject: Subject
    rounds: list[list[float]] = field(default_factory=list)
    memory_mb: float | None = None
    params: int | None = None
    macs: int | None = None
    error: str | None = None

    def quantile(self, q: float) -> float | None:
        """Return a quantile of the seconds; None without a complete measurement."""
        return None if self.error is not None else float(np.quantile(np.concatenate(self.rounds), q))

    @property
    def median(self) -> float | None:
        """Median of the seconds; None without a complete measurement."""
        return self.quantile(0.5)

    def time_over(self, other: Result) -> float | None:
        """Return the median time over that of another result; None if one failed."""
        return _divide(self.median, other.median)

    def time_over_in_rounds(self, other: Result) -> float | None:
        """Return the median, over the rounds, of the ratio of the times within a round; None if one failed."""
        if self.error is not None or other.error is not None:
            return None
        rounds = zip(self.rounds, other.rounds, strict=True)
        return float(np.median([np.median(mine) / np.median(its) for mine, its in rounds]))

    def memory_over(self, other: Result) -> float | None:
        """Return the memory over that of another result; None if one failed, or did not grow at all."""
        return _divide(self.memory_mb, other.memory_mb)


@dataclass
class Comparison:
    """What was measured of several backbones at one input, in the same rounds.

    Args:
        size: The input.
        results: One for each backbone.
    """

    size: InputSize
    results: list[Result]

    def result(self, name: str) -> Result:
        """Return the result of a backbone."""
        return next(result for result in self.results if result.subject.name == name)


def _divide(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def compare(
    subjects: Sequence[Subject],
    sizes: Sequence[InputSize],
    settings: Settings,
    *,
    rounds: int,
    iterations: int,
    notify: Callable[[str], None] = lambda text: None,
) -> list[Comparison]:
    """Measure backbones in turns.

    Every backbone is built and warmed up, for every input, in a process of its own. Then, round by round, one after the
    other runs while the others sleep, so that whatever slows the machine down for a while slows down all of them. The
    order alternates, so that none always follows the same neighbour. What fails drops out; the others go on.

    Args:
        subjects: The backbones.
        sizes: The inputs.
        settings: How to run them.
        rounds: Rounds.
        iterations: Timed iterations of a backbone in a round, after an untimed one.
        notify: Called with what happens next.

    Returns:
        What was measured, by input.
    """
    comparisons = [Comparison(size, [Result(subject) for subject in subjects]) for size in sizes]
    runs: list[tuple[Result, str, Worker]] = []

    def attempt(run: tuple[Result, str, Worker], text: str, step: Callable[[Result, Worker], None]) -> None:
        result, name, worker = run
        if result.error is None:
            notify(f'{text} {name}')
            try:
                step(result, worker)
            except WorkerError as error:
                result.error = str(error)

    with ExitStack() as stack:
        for comparison in comparisons:
            for result in comparison.results:
                worker = stack.enter_context(Worker(Task(result.subject, comparison.size, settings)))
                runs.append((result, f'{result.subject.name} at {comparison.size}', worker))
                attempt(runs[-1], 'warming up', lambda _, worker: worker.wait_until_ready())
        for i in range(rounds):
            for run in runs if i % 2 == 0 else reversed(runs):
                text = f'round {i + 1} of {rounds}: running'
                attempt(run, text, lambda result, worker: result.rounds.append(worker.run(iterations)))
        for run in runs:
            attempt(run, 'counting', lambda result, worker: vars(result).update(worker.finish()))
    return comparisons
