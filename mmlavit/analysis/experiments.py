"""Experiments: several trainings with several seeds, run piece by piece, and what came out of them."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mmlavit.errors import UserError
from mmlavit.utils.arguments import load_config
from mmlavit.utils.local_files import write_file

from .curves import Curve, Log, Panel, draw_panels

RESUMABLE = ('tools/train.py', 'tools/distill.py')
"""Tools that go on where they were interrupted when they are told to."""

_LOGS = ('*/vis_data/[0-9]*.json', '*/[0-9]*.json')  # of mmengine's trainings, and of its tests
_running: set[subprocess.Popen] = set()
_KEYS = {'title', 'metric', 'scale', 'digits', 'seeds', 'reference', 'columns', 'arms'}
_ARM_KEYS = {'title', 'seeds', 'needs', 'names', 'commands'}


@dataclass(frozen=True)
class Arm:
    """One row of an experiment's table: commands that are run one after another for every seed.

    Args:
        name (str): Names its folder.
        title (str): Names its row.
        seeds (tuple[int, ...]): Random seeds.
        needs (tuple[str, ...]): Earlier arms whose results the commands read.
        commands (Mapping[str, str]): Commands by a name of each. ``{seed}`` stands for the seed, ``{arm}`` for the
            arm's name, ``{work_dir}`` for the command's own folder, ``{run}`` for that of the arm and the seed, which
            holds those of its commands, and ``{root}`` for that of the experiment, which holds ``ARM/seed_N``.
        names (Mapping[str, Any]): What else stands for ``{NAME}`` in its commands: the plan's names and its own.
    """

    name: str
    title: str
    seeds: tuple[int, ...]
    needs: tuple[str, ...]
    commands: Mapping[str, str]
    names: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """What an experiment runs and compares.

    Args:
        name (str): Name of its file.
        title (str): What is compared, on what.
        metric (str): Name under which a validation or test logs the result.
        scale (float): Factor for the tables, such as 100 for a share.
        digits (int): Decimals in the tables.
        reference (str): The arm that differences are to.
        columns (Mapping[str, str]): Commands whose result is shown, and what the table calls them.
        arms (tuple[Arm, ...]): The rows.
    """

    name: str
    title: str
    metric: str
    scale: float
    digits: int
    reference: str
    columns: Mapping[str, str]
    arms: tuple[Arm, ...]

    @classmethod
    def read(cls, path: str) -> Plan:
        """Read a plan.

        Args:
            path (str): A Python file as those in ``configs/experiments/plans``. Besides what a plan and its arms
                have, it may say ``seeds`` and ``commands`` of all arms that have none of their own, and ``names`` that
                all arms share, also in their titles.

        Returns:
            Plan: The plan.

        Raises:
            UserError: If the file does not exist or is no Python, a key is missing or unknown, or a command has a
                placeholder that nothing stands for.
        """
        if not Path(path).is_file():
            raise UserError(f'plan {path} does not exist; expected a file such as those in configs/experiments/plans')
        cfg = load_config(path)
        missing = _KEYS - set(cfg)
        if missing:
            if 'model' in cfg:
                raise UserError(
                    f'{path} is the config of a model, not a plan; expected a file such as those in '
                    'configs/experiments/plans'
                )
            raise UserError(f'{path} has no {", ".join(sorted(missing))}; a plan has {", ".join(sorted(_KEYS))}')
        arms = []
        for name, arm in cfg.arms.items():
            commands = arm.get('commands', cfg.get('commands'))
            if arm.keys() - _ARM_KEYS or 'title' not in arm or commands is None:
                raise UserError(f'{path}: arm {name} has {", ".join(arm)}; expected {", ".join(sorted(_ARM_KEYS))}')
            needs = tuple(arm.get('needs', ()))
            if not set(needs) <= {earlier.name for earlier in arms}:
                raise UserError(f'{path}: arm {name} needs {", ".join(needs)}, which must be arms that stand before it')
            names = {**cfg.get('names', {}), **arm.get('names', {})}
            seeds = tuple(arm.get('seeds', cfg.seeds))
            if not seeds:
                raise UserError(f'{path}: arm {name} has no seeds')
            arms.append(Arm(name, arm.title, seeds, needs, dict(commands), names))
        if cfg.reference not in cfg.arms:
            raise UserError(f'{path}: reference is {cfg.reference}; expected one of {", ".join(cfg.arms)}')
        unknown = set(cfg.columns) - {name for arm in arms for name in arm.commands}
        if unknown:
            raise UserError(f'{path}: columns names {", ".join(sorted(unknown))}, which no arm has a command for')
        plain = (cfg[key] for key in ('title', 'metric', 'scale', 'digits', 'reference'))
        plan = cls(Path(path).stem, *plain, dict(cfg.columns), tuple(arms))
        titled = []
        for arm in arms:
            try:
                titled.append(replace(arm, title=arm.title.format(**arm.names)))
                commands = {name: shlex.split(plan.command(arm, name, arm.seeds[0], Path())) for name in arm.commands}
            except (AttributeError, LookupError, TypeError, ValueError) as error:
                raise UserError(
                    f'{path}: title or commands of arm {arm.name} cannot be filled in ({type(error).__name__}: '
                    f'{error}); double a brace that is meant as one'
                ) from error
            for name, words in commands.items():
                if not words or '=' in words[0]:
                    raise UserError(f'{path}: command {name} of arm {arm.name} begins with no program')
        if len({arm.title for arm in titled}) < len(titled):
            raise UserError(f'{path}: two arms have the same title')
        return replace(plan, arms=tuple(titled))

    def command(self, arm: Arm, name: str, seed: int, root: Path) -> str:
        """Give a command of an arm as it is run for a seed.

        Args:
            arm (Arm): The arm.
            name (str): Name of the command.
            seed (int): The seed.
            root (Path): Folder of the experiment.

        Returns:
            str: The command, without placeholders.
        """
        run = root / arm.name / f'seed_{seed}'
        places = dict(seed=seed, arm=arm.name)
        places |= {key: shlex.quote(str(place)) for key, place in dict(work_dir=run / name, run=run, root=root).items()}
        command = arm.commands[name].format(**arm.names, **places)
        return ' '.join(command.split())

    def choose(self, names: Sequence[str], seeds: Sequence[int] = ()) -> list[Arm]:
        """Choose arms by their names, with what they need, and seeds; none means all.

        Args:
            names (Sequence[str]): Names of arms.
            seeds (Sequence[int]): Seeds. An arm that has none of them keeps its own, as a teacher that is trained once.

        Returns:
            list[Arm]: The arms, in the plan's order, with these seeds only.

        Raises:
            UserError: If there is no such arm or seed.
        """
        known = {arm.name: arm for arm in self.arms}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UserError(f'{self.name} has no arm {", ".join(unknown)}; expected some of {", ".join(known)}')
        wanted = set(names or known)
        for arm in reversed(self.arms):
            if arm.name in wanted:
                wanted |= set(arm.needs)
        possible = sorted({seed for arm in self.arms for seed in arm.seeds})
        strange = sorted(set(seeds) - set(possible))
        if strange:
            raise UserError(
                f'{self.name} has no seed {", ".join(map(str, strange))}; expected some of '
                f'{", ".join(map(str, possible))}'
            )
        return [
            replace(arm, seeds=tuple(seed for seed in arm.seeds if seed in seeds) or arm.seeds)
            for arm in self.arms
            if arm.name in wanted
        ]


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
        UserError: If a command fails, gives no result where the table wants one, or has been run with other options; or
            if another process runs it.
    """
    for arm in arms:
        for seed in arm.seeds:
            for name in arm.commands:
                _require_same_command(plan, arm, name, seed, root / arm.name / f'seed_{seed}' / name)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    failed = threading.Event()
    with ThreadPoolExecutor(jobs) as pool:
        futures: dict[str, list[Future]] = {}
        # Those that wait for nobody come first, since who waits takes up a job. The others keep their order: whom they
        # wait for was submitted earlier, so they never keep it from starting.
        for arm in sorted(arms, key=lambda arm: bool(arm.needs)):
            before = [future for need in arm.needs for future in futures[need]]
            futures[arm.name] = [
                pool.submit(_run_arm, plan, arm, seed, root, threads, before, failed, conditions) for seed in arm.seeds
            ]
        try:
            for future in wait([future for some in futures.values() for future in some], None, FIRST_EXCEPTION).done:
                future.result()
        except BaseException as error:
            failed.set()
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, SystemExit):  # a signal for this process alone; Ctrl-C reaches all
                for process in _running.copy():
                    process.terminate()
            raise


def _run_arm(
    plan: Plan,
    arm: Arm,
    seed: int,
    root: Path,
    threads: int,
    before: Sequence[Future],
    failed: threading.Event,
    conditions: str,
) -> None:
    """Run the commands of one arm with one seed, after others, until any command of the plan has failed."""
    try:
        for future in before:
            future.result()
        for name in arm.commands:
            folder = root / arm.name / f'seed_{seed}' / name
            if failed.is_set():
                continue
            if not _done(folder).is_file():
                record = dict(plan=plan.command(arm, name, seed, Path()), conditions=conditions)
                _run_command(plan.command(arm, name, seed, root), folder, threads, record)
            if name in plan.columns and not read_results(folder, plan.metric):
                logged = ', '.join(_logged(folder)) or 'none'
                raise UserError(f'{folder} has no {plan.metric} in its logs; what they have of a validation: {logged}')
    except BaseException:
        failed.set()
        raise


def _run_command(command: str, folder: Path, threads: int, record: Mapping[str, str]) -> None:
    """Run a command, or go on with it, and leave a note when it has ended well."""
    words = shlex.split(command)
    if words[0] == 'python':
        words[0] = sys.executable
    if any(word in RESUMABLE for word in words) and any(folder.glob('*.pth')):
        words.append('--resume')
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / 'output.txt'
    begun = _read_record(folder)
    if begun.get('conditions') and not begun['conditions'].endswith(record['conditions']):  # it goes on elsewhere
        record = dict(record, conditions=f'{begun["conditions"]}, then {record["conditions"]}')
    print(f'{time.strftime("%H:%M:%S")} {command}\n', end='', flush=True)  # in one piece: jobs print at the same time
    start = time.monotonic()
    env = {**os.environ, 'OMP_NUM_THREADS': str(threads)}
    with log.open('ab') as output, _locked(folder) as lock:
        write_file(folder / 'begun.json', json.dumps(record).encode())
        try:
            process = subprocess.Popen(words, stdout=output, stderr=output, env=env, pass_fds=[lock])
        except OSError as error:
            raise UserError(f'cannot start: {command} ({error.strerror})') from error
        _running.add(process)
        try:
            code = process.wait()
        finally:
            _running.discard(process)
    if code:
        last = log.read_text(errors='replace').strip().splitlines()[-1:]
        raise UserError(f'exit code {code} from: {command}\n{"".join(last)}\n(all of its output: {log})')
    record = dict(command=command, seconds=round(time.monotonic() - start), **record)
    write_file(_done(folder), json.dumps(record).encode())


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


def _done(folder: Path) -> Path:
    """Name the file that a command leaves which ended well."""
    return folder / 'done.json'


def _read_record(folder: Path) -> dict[str, Any]:
    """Read what a command that has ended or begun has left about itself."""
    files = [file for file in (_done(folder), folder / 'begun.json') if file.is_file()]
    return json.loads(files[0].read_text()) if files else {}


def _is_stale(plan: Plan, arm: Arm, name: str, seed: int, folder: Path) -> bool:
    """Tell whether what is in a folder was made by another command than the plan has now."""
    return _read_record(folder).get('plan') not in (None, plan.command(arm, name, seed, Path()))


def _require_same_command(plan: Plan, arm: Arm, name: str, seed: int, folder: Path) -> None:
    if _is_stale(plan, arm, name, seed, folder):
        raise UserError(
            f'{folder} was made by another command than the plan has now ({_read_record(folder)["plan"]}); remove it, '
            'or undo the change'
        )


def _read_rows(folder: Path) -> list[dict[str, Any]]:
    """Read all rows of a command's logs."""
    logs = sorted(log for pattern in _LOGS for log in folder.glob(pattern))
    return [json.loads(line) for log in logs for line in log.read_text().splitlines() if line.endswith('}')]


def _logged(folder: Path) -> list[str]:
    """List what validations or a test gave."""
    return sorted({key for row in _read_rows(folder) if 'lr' not in row for key in row} - {'step', 'time', 'data_time'})


def read_results(folder: Path, metric: str) -> list[tuple[int, float]]:
    """Read what a command's validations or test gave.

    Args:
        folder (Path): Its work dir.
        metric (str): Name of the metric.

    Returns:
        list[tuple[int, float]]: Step and value of each; the last is the result. Empty if it logged none.
    """
    results = {}
    for row in _read_rows(folder):
        if metric in row:
            results[int(row.get('step', 0))] = float(row[metric])
        elif metric.startswith('coco/') and not any(key == 'lr' or key.startswith('coco/') for key in row):
            # mmdet logs no AP where nothing was found
            results[int(row.get('step', 0))] = 0.0
    return sorted(results.items())


@dataclass(frozen=True)
class Summary:
    """Results of one arm in one column.

    Args:
        values (Mapping[int, float]): Result for each seed.
        difference (Mapping[int, float]): Result minus that of the reference with the same seed, or its only one.
    """

    values: Mapping[int, float]
    difference: Mapping[int, float]


def interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % confidence interval of a mean, by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def summarise(plan: Plan, root: Path) -> dict[str, dict[str, Summary]]:
    """Collect the results of what has been run.

    Args:
        plan (Plan): The experiment.
        root (Path): Its folder.

    Returns:
        dict[str, dict[str, Summary]]: By arm and column; arms without results have no columns.
    """
    values = {
        arm.name: {
            column: {
                seed: results[-1][1] * plan.scale
                for seed in arm.seeds
                if (results := _finished(plan, arm, column, seed, root))
            }
            for column in plan.columns
        }
        for arm in plan.arms
    }
    single = next(len(arm.seeds) == 1 for arm in plan.arms if arm.name == plan.reference)
    summaries = {}
    for arm, columns in values.items():
        summaries[arm] = {}
        for column, some in columns.items():
            reference = values[plan.reference][column] if arm != plan.reference else {}
            if single and reference:
                reference = dict.fromkeys(some, *reference.values())
            difference = {seed: value - reference[seed] for seed, value in some.items() if seed in reference}
            if some:
                summaries[arm][column] = Summary(some, difference)
    return summaries


def _finished(plan: Plan, arm: Arm, name: str, seed: int, root: Path) -> list[tuple[int, float]]:
    """Read the results of a command that ended well."""
    folder = root / arm.name / f'seed_{seed}' / name
    done = name in arm.commands and _done(folder).is_file() and not _is_stale(plan, arm, name, seed, folder)
    return read_results(folder, plan.metric) if done else []


def _describe_runs(plan: Plan, root: Path) -> str:
    """Say on what devices and with what versions commands have run, and what is left out of a report."""
    found, stale = set(), []
    for arm in plan.arms:
        for seed in arm.seeds:
            for name in arm.commands:
                folder = root / arm.name / f'seed_{seed}' / name
                if _is_stale(plan, arm, name, seed, folder):
                    stale.append(f'{arm.name}/seed_{seed}/{name}')
                elif _done(folder).is_file():
                    found.add(_read_record(folder).get('conditions') or 'not recorded')
    text = f'Run on: {"; ".join(sorted(found)) or "nothing yet"}.'
    if stale:
        text += f'\n\nLeft out, since the plan was changed after they had run: {", ".join(stale)}.'
    return text


def write_report(plan: Plan, root: Path, out_dir: Path, command: str) -> None:
    """Write report.md, report.json and, if trainings were validated on the way, curves.png.

    Args:
        plan (Plan): The experiment.
        root (Path): Its folder.
        out_dir (Path): Where the report goes; made if it does not exist.
        command (str): What writes the report.
    """
    summaries = summarise(plan, root)
    conditions = _describe_runs(plan, root)
    out_dir.mkdir(parents=True, exist_ok=True)
    panel = _curves(plan, root)
    picture = ''
    if any(len(curve.points) > 1 for curve in panel.curves):
        draw_panels([panel], out_dir / 'curves.png')
        picture = '\n![Curves](curves.png)\n'
    (out_dir / 'report.md').write_text(
        f'# {plan.title}\n\n{conditions}\n\n```bash\n{command}\n```\n\n{_table(plan, summaries)}\n{picture}'
        f'{_commands(plan, summaries)}',
        encoding='utf-8',
    )
    content = dict(
        title=plan.title,
        metric=plan.metric,
        scale=plan.scale,
        command=command,
        conditions=conditions,
        values={
            arm: {column: {str(seed): value for seed, value in some.values.items()} for column, some in columns.items()}
            for arm, columns in summaries.items()
        },
        curves={curve.name: curve.points for curve in panel.curves},
    )
    (out_dir / 'report.json').write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')


def _table(plan: Plan, summaries: Mapping[str, Mapping[str, Summary]]) -> str:
    """Lay out means, intervals and single values."""
    if not any(summaries.values()):
        return 'Nothing that gives a result has ended yet.\n'
    reference = next(arm.title for arm in plan.arms if arm.name == plan.reference)
    head = ['']
    for title in plan.columns.values():
        head += [title, f'minus *{reference}*']
    rows = [head, ['---', *['---:'] * (len(head) - 1)]]
    for arm in plan.arms:
        if not summaries[arm.name]:
            continue
        row = [arm.title]
        for column in plan.columns:
            some = summaries[arm.name].get(column)
            row += [_cell(plan, some.values, True), _cell(plan, some.difference, False)] if some else ['', '']
        rows.append(row)
    note = (
        "Means over seeds, ± half of the 95 % confidence interval (Student's t), and in brackets the single values. "
        'Differences are between runs of the same seed, or to the only run of what is compared with.'
    )
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows) + f'\n\n{note}\n'


def _cell(plan: Plan, values: Mapping[int, float], single: bool) -> str:
    if not values:
        return ''
    numbers = [values[seed] for seed in sorted(values)]
    width = interval(numbers)
    text = f'{mean(numbers):.{plan.digits}f}' if single else f'{mean(numbers):+.{plan.digits}f}'
    if width is None:
        return text
    text += f' ± {width:.{plan.digits}f}'
    return f'{text} ({", ".join(f"{number:.{plan.digits}f}" for number in numbers)})' if single else text


def _commands(plan: Plan, summaries: Mapping[str, Mapping[str, Summary]]) -> str:
    """List what was run, for the first seed of each arm; nothing if nothing was."""
    root = Path('work_dirs/experiments') / plan.name
    parts = []
    for arm in plan.arms:
        if summaries[arm.name]:
            lines = '\n'.join(plan.command(arm, name, arm.seeds[0], root) for name in arm.commands)
            seeds = ', '.join(map(str, arm.seeds))
            parts.append(f'*{arm.title}*, for seeds {seeds}:\n\n```bash\n{lines}\n```\n')
    return '\n'.join(['\n## Commands\n', *parts]) if parts else ''


def draw_times(plan: Plan, root: Path, benchmarks: Sequence[Path], out_file: Path) -> None:
    """Draw the results of each arm against the time that its backbone takes, a panel for each benchmark.

    Args:
        plan (Plan): The experiment; the results are those of its first column.
        root (Path): Its folder.
        benchmarks (Sequence[Path]): Files report.json of ``benchmark.py --subjects CONFIG ...``, of which the first
            input is taken.
        out_file (Path): Where the picture goes.

    Raises:
        UserError: If a file is no such report, or has none of the arms that have results.
    """
    column = next(iter(plan.columns))
    arms = [arm for arm in plan.arms if column in arm.commands]
    summaries = summarise(plan, root)
    panels = []
    for file in benchmarks:
        try:
            report = json.loads(file.read_text())
            mode, comparison = report['settings']['mode'], report['comparisons'][0]
            times = {result['backbone']: result['median_s'] for result in comparison['results']}
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f'{file} is no report.json of benchmark.py: {error}') from error
        curves = []
        for arm in arms:
            words = shlex.split(plan.command(arm, column, arm.seeds[0], root))
            found = [times[name] for name in (Path(word).stem for word in words) if times.get(name)]
            if found and column in summaries[arm.name]:
                values = sorted(summaries[arm.name][column].values.values())
                curves.append(Curve(arm.title, [(found[0] * 1e3, value) for value in values], dict(marker='.')))
        if not curves:
            raise UserError(f'{file} has the config of no arm with results; it has {", ".join(times)}')
        size = 'x'.join(str(comparison['input'][side]) for side in ('batch', 'height', 'width'))
        panels.append(Panel(plan.metric, f'time of the backbone, ms ({mode}, {size})', curves))
    draw_panels(panels, out_file)


def _curves(plan: Plan, root: Path) -> Panel:
    """Mean over seeds of what the validations of trainings gave."""
    curves: dict[tuple[str, str], list] = {}
    unit = 'iteration'
    for arm in plan.arms:
        for column in plan.columns:
            folders = {seed: root / arm.name / f'seed_{seed}' / column for seed in arm.seeds}
            found = {folder: _finished(plan, arm, column, seed, root) for seed, folder in folders.items()}
            runs = {folder: results for folder, results in found.items() if len(results) > 1}
            if not runs:
                continue
            steps = sorted(set.intersection(*({step for step, _ in run} for run in runs.values())))
            points = [(step, plan.scale * mean(dict(run)[step] for run in runs.values())) for step in steps]
            curves[arm.title, column] = points
            unit = Log.read(next(iter(runs))).unit(plan.metric)
    several = len({column for _, column in curves}) > 1
    return Panel(
        plan.metric,
        unit,
        [
            Curve(f'{title}, {plan.columns[column]}' if several else title, points, dict(marker='.'))
            for (title, column), points in curves.items()
        ],
    )
