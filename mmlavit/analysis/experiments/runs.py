"""The commands of a plan: run once each, resumed where they were interrupted, and what they have left."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from mmlavit.errors import UserError
from mmlavit.utils.local_files import write_file
from mmlavit.utils.processors import count_processors

from ..curves import is_training, place_validations, read_rows
from .plan import Arm, Plan

RESUMABLE = ('tools/train.py', 'tools/distill.py')
"""Tools that go on where they were interrupted when they are told to."""

_LOGS = ('*/vis_data/[0-9]*.json', '*/[0-9]*.json')  # of mmengine's trainings, and of its tests
# What a command reads of another plan, wherever that of its own is.
_OTHER_PLAN = re.compile(r'(?<![\w./-])(?:\./)?(work_dirs/experiments/(\w+)/(\w+)/seed_(\d+)/\w+)/(\S+)')
_running: set[subprocess.Popen] = set()


@dataclass(frozen=True)
class Run:
    """One command of an arm for one seed. What it has left is read once, when it is first asked for.

    Args:
        plan (Plan): The experiment.
        arm (Arm): An arm of it.
        seed (int): A seed of the arm.
        name (str): Name of the command.
        root (Path): Folder of the experiment.
    """

    plan: Plan
    arm: Arm
    seed: int
    name: str
    root: Path

    @property
    def folder(self) -> Path:
        """Its work dir."""
        return self.root / self.arm.name / f'seed_{self.seed}' / self.name

    @property
    def command(self) -> str:
        """What is run."""
        return self.plan.command(self.arm, self.name, self.seed, self.root)

    @property
    def planned(self) -> str:
        """The same wherever the experiment's folder is."""
        return self.plan.command(self.arm, self.name, self.seed, Path())

    @cached_property
    def ended(self) -> bool:
        """Whether it has ended well."""
        return (self.folder / 'done.json').is_file()

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """What it has noted of itself at its end, or else at its beginning."""
        file = self.folder / ('done.json' if self.ended else 'begun.json')
        return json.loads(file.read_text()) if file.is_file() else {}

    @cached_property
    def reads(self) -> list[Run]:
        """Those whose folders are in its command: of the commands before it, and of the arms that it needs.

        Also where the command names the folder that has those of all commands of an arm and a seed.
        """
        earlier = [Run(self.plan, self.arm, self.seed, name, self.root) for name in self.arm.commands]
        earlier = earlier[: list(self.arm.commands).index(self.name)]
        needed = [
            run for arm in self.plan.arms if arm.name in self.arm.needs for run in runs_of(self.plan, arm, self.root)
        ]
        return [run for run in (*needed, *earlier) if run.is_named_in(self.planned)]

    def is_named_in(self, planned: str) -> bool:
        """Tell whether a command names its folder, or one in it, or the one that it is in."""
        name = re.escape(self.name_in_root)
        parent = re.escape(self.name_in_root.rpartition('/')[0])
        return bool(re.search(rf'(?<![\w./-])(?:\./)?(?:{name}(?![\w.-])|{parent}/?(?![\w./-]))', planned))

    @property
    def name_in_root(self) -> str:
        """Its folder, wherever that of the experiment is."""
        return self.folder.relative_to(self.root).as_posix()

    def sources(self) -> dict[str, str | None]:
        """Say which results are there of what it reads: for each folder, what names the run that ended there."""
        found = {run.name_in_root: run.record.get('id') if run.ended else 'none' for run in self.reads}
        for folder, *_ in self._reads_of_other_plans():
            done = Path(folder, 'done.json')
            if done.is_file():  # else it has been removed, which says nothing about what was read of it
                found[folder] = json.loads(done.read_text()).get('id')
        return found

    def _reads_of_other_plans(self) -> list[tuple[str, ...]]:
        return [found for word in shlex.split(self.planned) for found in _OTHER_PLAN.findall(word)]

    def require_other_plans(self) -> None:
        """Raise an error if a file that another plan makes is missing."""
        for folder, plan, arm, seed, name in self._reads_of_other_plans():
            if not Path(folder, name).exists():
                raise UserError(
                    f'{folder}/{name} does not exist; the plan {plan} makes it: run_experiment.py '
                    f'configs/experiments/plans/{plan}.py --arms {arm} --seeds {seed}'
                )

    @cached_property
    def why_stale(self) -> str:
        """Why what is there is not what the plan has now would leave; '' if it is, or if nothing is there."""
        if not self.record:
            return ''
        if self.record.get('plan') not in (None, self.planned):
            return f'was made by another command than the plan has now ({self.record["plan"]})'
        now = self.sources()
        noted = self.record.get('sources', {})  # nothing by earlier versions
        folders = {run.name_in_root: run.folder for run in self.reads}
        stale = {run.name_in_root for run in self.reads if run.why_stale}
        for name in now:
            if name in stale or noted.get(name, now[name]) != now[name]:
                return f'was made from what is no longer in {folders.get(name, name)}'
        return ''

    def results(self) -> list[tuple[int, float]]:
        """Read the results, if it has ended well and the plan still wants it; see :func:`read_results`."""
        return read_results(self.folder, self.plan.metric) if self.ended and not self.why_stale else []


def runs_of(plan: Plan, arm: Arm, root: Path) -> list[Run]:
    """List the runs of an arm, for each of its seeds one after another."""
    return [Run(plan, arm, seed, name, root) for seed in arm.seeds for name in arm.commands]


class _Terms(NamedTuple):
    """How the commands of a plan are run.

    Args:
        jobs (int): Commands at a time.
        threads (int): Threads of each.
        conditions (str): Device and versions.
        failed (threading.Event): Set once any has failed.
        stopped (threading.Event): Set once all are to end at once.
    """

    jobs: int
    threads: int
    conditions: str
    failed: threading.Event
    stopped: threading.Event


def require_runnable(plan: Plan, arms: Sequence[Arm], root: Path) -> None:
    """Make sure that a plan can begin, or go on.

    Args:
        plan (Plan): The experiment.
        arms (Sequence[Arm]): What of it is to be run.
        root (Path): Folder of the experiment.

    Raises:
        UserError: If a command has been run with other options or on other results, or reads what another plan has not
            made yet.
    """
    stale = [run for arm in arms for run in runs_of(plan, arm, root) if run.why_stale]
    if stale:
        folders = ', '.join(str(run.folder) for run in stale)
        raise UserError(f'{stale[0].folder} {stale[0].why_stale}; remove {folders}, or undo the change')
    for arm in arms:
        for run in runs_of(plan, arm, root):
            if not run.ended:
                run.require_other_plans()


def run_plan(plan: Plan, arms: Sequence[Arm], root: Path, jobs: int = 1, conditions: str = '') -> None:
    """Run what has not been run yet.

    A command that ended well is not run again. One that was interrupted goes on from its last checkpoint, if its tool
    can (:data:`RESUMABLE`).

    Args:
        plan (Plan): The experiment.
        arms (Sequence[Arm]): What of it.
        root (Path): Folder of the experiment.
        jobs (int): Commands that run at a time; they share the processors.
        conditions (str): Device and versions, for the report.

    Raises:
        UserError: As :func:`require_runnable`; or if a command fails or gives no result where the table wants one, or
            if another process runs it.
    """
    require_runnable(plan, arms, root)
    terms = _Terms(jobs, max(1, count_processors() // jobs), conditions, threading.Event(), threading.Event())
    with ThreadPoolExecutor(jobs) as pool:
        futures: dict[str, list[Future]] = {}
        # Those that wait for nobody come first, since who waits takes up a job. The others keep their order: whom they
        # wait for was submitted earlier, so they never keep it from starting.
        for arm in sorted(arms, key=lambda arm: bool(arm.needs)):
            before = [future for need in arm.needs for future in futures[need]]
            futures[arm.name] = [
                pool.submit(_run_in_turn, [Run(plan, arm, seed, name, root) for name in arm.commands], before, terms)
                for seed in arm.seeds
            ]
        try:
            for future in wait([future for some in futures.values() for future in some], None, FIRST_EXCEPTION).done:
                future.result()
        except BaseException as error:
            terms.failed.set()
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, SystemExit):  # a signal for this process alone; Ctrl-C reaches all
                terms.stopped.set()
                for process in _running.copy():
                    process.terminate()
            raise


def _run_in_turn(runs: Sequence[Run], before: Sequence[Future], terms: _Terms) -> None:
    """Run commands one after another, after others, until any command of the plan has failed."""
    try:
        for future in before:
            future.result()
        for run in runs:
            if terms.failed.is_set():
                continue
            if not run.ended:
                _run_command(run, terms)
            if run.name in run.plan.columns and not read_results(run.folder, run.plan.metric):
                logged = ', '.join(_logged(run.folder)) or 'none'
                raise UserError(
                    f'{run.folder} has no {run.plan.metric} in its logs; what they have of a validation: {logged}'
                )
    except BaseException as error:
        if terms.jobs > 1 and not terms.failed.is_set():  # else it is told at once
            print(
                f'{time.strftime("%H:%M:%S")} failed: {error}\n(what runs beside it goes on to its end)\n', flush=True
            )
        terms.failed.set()
        raise


def _run_command(run: Run, terms: _Terms) -> None:
    """Run a command, or go on with it, and leave a note when it has ended well."""
    command, folder = run.command, run.folder
    words = shlex.split(command)
    if words[0] == 'python':
        words[0] = sys.executable
    if any(word in RESUMABLE for word in words) and any(folder.glob('*.pth')):
        words.append('--resume')
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / 'output.txt'
    conditions = terms.conditions
    begun = run.record.get('conditions')
    if begun and not begun.endswith(conditions):  # it goes on elsewhere
        conditions = f'{begun}, then {conditions}'
    record = dict(plan=run.planned, conditions=conditions, sources=run.sources())
    print(f'{time.strftime("%H:%M:%S")} {command}\n', end='', flush=True)  # in one piece: jobs print at the same time
    env = {**os.environ, 'OMP_NUM_THREADS': str(terms.threads)}
    with log.open('ab') as output, _locked(folder) as lock:
        if (folder / 'done.json').is_file():  # another process was faster
            return
        write_file(folder / 'begun.json', json.dumps(record).encode())
        try:
            process = subprocess.Popen(words, stdout=output, stderr=output, env=env, pass_fds=[lock])
        except OSError as error:
            raise UserError(f'cannot start: {command} ({error.strerror})') from error
        _running.add(process)
        if terms.stopped.is_set():  # meanwhile
            process.terminate()
        try:
            code = process.wait()
        finally:
            _running.discard(process)
        if code:
            last = log.read_text(errors='replace').strip().splitlines()[-1:]
            raise UserError(f'exit code {code} from: {command}\n{"".join(last)}\n(all of its output: {log})')
        write_file(folder / 'done.json', json.dumps(dict(id=uuid.uuid4().hex, **record)).encode())


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Keep other processes from running the same command. What is run inherits the lock, should this one be killed."""
    with (folder / 'lock').open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f'another process is at work in {folder}; wait for it, or stop it') from None
        except OSError:
            pass  # a file system without locks
        yield file.fileno()


def _read_logs(folder: Path) -> list[dict[str, Any]]:
    """Read all rows of a command's logs."""
    rows = []
    for log in sorted(log for pattern in _LOGS for log in folder.glob(pattern)):
        found = read_rows(log, need=None)
        if all('step' in row for row in found):  # a test has none
            found = place_validations(found, rows[-1].get('step', 0) if rows else 0)
        rows += found
    return rows


def _logged(folder: Path) -> list[str]:
    """List what validations or a test gave."""
    keys = {key for row in _read_logs(folder) if not is_training(row) for key in row}
    return sorted(keys - {'step', 'time', 'data_time'})


def read_results(folder: Path, metric: str) -> list[tuple[int, float]]:
    """Read what a command's validations or test gave.

    Args:
        folder (Path): Its work dir.
        metric (str): Name of the metric.

    Returns:
        list[tuple[int, float]]: Step and value of each; the last is the result. Empty if it logged none.
    """
    results = {}
    for row in _read_logs(folder):
        if metric in row:
            results[int(row.get('step', 0))] = float(row[metric])
        elif metric.startswith('coco/') and not is_training(row) and not any(key.startswith('coco/') for key in row):
            # mmdet logs no AP where nothing was found
            results[int(row.get('step', 0))] = 0.0
    return sorted(results.items())
