"""Measuring backbones side by side: one process each, one of them working at a time, in turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .subjects import InputSize, Subject
from .worker import Settings, Worker, WorkerError


@dataclass
class Result:
    """What was measured of one backbone at one input.

    Args:
        subject (Subject): The backbone.
        rounds (list[list[float]]): Seconds of every timed iteration, by round.
        memory_mb (float, optional): Peak memory in MB. CPU: growth of the peak resident memory since the run at the
            memory base; CUDA: peak of the memory allocated for tensors.
        params (int, optional): Parameters.
        macs (int, optional): Multiply-adds for one image.
        error (str, optional): Why there is no more; None if all went well.
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

    def ratios_to(self, other: Result) -> dict[str, float | None]:
        """Compare with another result of the same rounds.

        Args:
            other (Result): The result that is divided by.

        Returns:
            dict[str, float | None]: 'time', of the medians; 'time_within_rounds', the median of the ratios within a
            round; 'memory'. None where one failed or took nothing.
        """
        ratios = dict(time=_divide(self.median, other.median), time_within_rounds=None)
        if ratios['time']:
            rounds = zip(self.rounds, other.rounds, strict=True)
            within = [np.median(mine) / np.median(others) for mine, others in rounds]
            ratios['time_within_rounds'] = float(np.median(within))
        return {**ratios, 'memory': _divide(self.memory_mb, other.memory_mb)}


@dataclass
class Comparison:
    """What was measured of several backbones at one input, in the same rounds.

    Args:
        size (InputSize): The input.
        results (list[Result]): One for each backbone.
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

    Every backbone is built, all at the same time, and warmed up, one after the other, for every input, in a process of
    its own. Then, round by round, one after the
    other runs while the others sleep, so that whatever slows the machine down for a while slows down all of them. The
    order alternates, so that none always follows the same neighbour. What fails drops out; the others go on.

    Args:
        subjects (Sequence[Subject]): The backbones.
        sizes (Sequence[InputSize]): The inputs.
        settings (Settings): How to run them.
        rounds (int): Rounds.
        iterations (int): Timed iterations of a backbone in a round, after an untimed one.
        notify (Callable): Called with what happens next.

    Returns:
        list[Comparison]: What was measured, by input.
    """
    comparisons = [Comparison(size, [Result(subject) for subject in subjects]) for size in sizes]
    runs: list[tuple[Result, str, Worker]] = []

    def attempt(run: tuple[Result, str, Worker], text: str, method: str, *args: object) -> Any:
        result, name, worker = run
        if result.error is None:
            notify(f'{text} {name}')
            try:
                return worker.call(method, *args)
            except WorkerError as error:
                result.error = str(error)
        return None

    with ExitStack() as stack:
        for comparison in comparisons:
            for result in comparison.results:
                worker = stack.enter_context(Worker(result.subject, comparison.size, settings))
                runs.append((result, f'{result.subject.name} at {comparison.size}', worker))
        for run in runs:
            attempt(run, 'warming up', 'warm_up')
        for i in range(rounds):
            for run in runs if i % 2 == 0 else reversed(runs):
                seconds = attempt(run, f'round {i + 1} of {rounds}: running', 'run', iterations)
                run[0].rounds += [seconds] if seconds else []
        for run in runs:
            vars(run[0]).update(attempt(run, 'counting', 'finish') or {})
    return comparisons
