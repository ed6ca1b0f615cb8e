"""What came out of an experiment: tables, curves, and results against time."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from mmlavit.errors import UserError
from mmlavit.utils.local_files import write_file

from ..curves import Curve, Log, Panel, draw_panels
from .plan import Arm, Plan
from .runs import Run, runs_of


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
    """Half the width of the 95 % interval of a mean, by Student's t; None for fewer than two values, or with NaN."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
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
            column: {seed: results[-1][1] * plan.scale for seed, results in _column(plan, arm, column, root).items()}
            for column in plan.columns
        }
        for arm in plan.arms
    }
    single = _has_one_run(plan)
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


def _has_one_run(plan: Plan) -> bool:
    """Tell whether what is compared with is run once, so that how much it varies is not known."""
    return next(len(arm.seeds) == 1 for arm in plan.arms if arm.name == plan.reference)


def _column(plan: Plan, arm: Arm, name: str, root: Path) -> dict[int, list[tuple[int, float]]]:
    """Read the results of an arm in one column, by seed; what has not ended, or has none, is left out."""
    if name not in arm.commands:
        return {}
    found = {seed: Run(plan, arm, seed, name, root).results() for seed in arm.seeds}
    return {seed: results for seed, results in found.items() if results}


def _describe_runs(plan: Plan, root: Path) -> str:
    """Say on what devices and with what versions commands have run, and what is left out of a report."""
    runs = [run for arm in plan.arms for run in runs_of(plan, arm, root)]
    stale = [run.name_in_root for run in runs if run.why_stale]
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        if run.ended and not run.why_stale:
            found.setdefault(run.record.get('conditions') or 'not recorded', {})[f'{run.arm.name}/seed_{run.seed}'] = (
                None
            )
    text = f'Run on: {"".join(found) or "nothing yet"}.'
    if len(found) > 1:
        text = 'Run on:\n\n' + '\n'.join(f'- {conditions}: {", ".join(some)}' for conditions, some in found.items())
    if stale:
        text += (
            '\n\nLeft out, since the plan was changed after they had run, or what they read has been made anew or '
            f'removed: {", ".join(stale)}.'
        )
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
    write_file(
        out_dir / 'report.md',
        f'# {plan.title}\n\n{conditions}\n\n```bash\n{command}\n```\n\n{_table(plan, summaries)}\n{picture}'
        f'{_commands(plan, summaries)}'.encode(),
    )
    content = dict(
        title=plan.title,
        metric=plan.metric,
        scale=plan.scale,
        command=command,
        conditions=conditions,
        values={
            arm: {
                column: {str(seed): _finite(value) for seed, value in some.values.items()}
                for column, some in columns.items()
            }
            for arm, columns in summaries.items()
        },
        curves={curve.name: [(step, _finite(value)) for step, value in curve.points] for curve in panel.curves},
    )
    write_file(out_dir / 'report.json', f'{json.dumps(content, indent=1)}\n'.encode())


def _finite(value: float) -> float | None:
    """Give a number for JSON, which has neither NaN nor infinity."""
    return value if math.isfinite(value) else None


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
            row += [_value(plan, some), _difference(plan, some)] if some else ['', '']
        rows.append(row)
    note = "Means over seeds, ± half of the 95 % confidence interval (Student's t), and in brackets the single values. "
    if _has_one_run(plan):
        note += (
            'Differences are from the only run of what is compared with; they have no interval, since it is not known '
            'how much that run would vary.'
        )
    else:
        note += 'Differences are between runs of the same seed.'
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows) + f'\n\n{note}\n'


def _value(plan: Plan, some: Summary) -> str:
    numbers = [some.values[seed] for seed in sorted(some.values)]
    width, text = interval(numbers), f'{mean(numbers):.{plan.digits}f}'
    if width is None:
        return text
    singles = ', '.join(f'{number:.{plan.digits}f}' for number in numbers)
    return f'{text} ± {width:.{plan.digits}f} ({singles})'


def _difference(plan: Plan, some: Summary) -> str:
    numbers = list(some.difference.values())
    if not numbers:
        return ''
    width, text = None if _has_one_run(plan) else interval(numbers), f'{mean(numbers):+.{plan.digits}f}'
    return text if width is None else f'{text} ± {width:.{plan.digits}f}'


def _commands(plan: Plan, summaries: Mapping[str, Mapping[str, Summary]]) -> str:
    """List what was run, for the first seed of each arm; nothing if nothing was."""
    root = Path('work_dirs/experiments') / plan.name
    parts = []
    for arm in plan.arms:
        if summaries[arm.name]:
            run = sorted({seed for some in summaries[arm.name].values() for seed in some.values})
            lines = '\n'.join(plan.command(arm, name, run[0], root) for name in arm.commands)
            seeds = ', '.join(map(str, run))
            parts.append(f'*{arm.title}*, for seeds {seeds}:\n\n```bash\n{lines}\n```\n')
    return '\n'.join(['\n## Commands\n', *parts]) if parts else ''


@dataclass(frozen=True)
class Benchmark:
    """Times of backbones.

    Args:
        file (Path): Where they were read.
        conditions (str): Mode and input.
        times (Mapping[str, float]): Medians in seconds, by the names of the configs.
    """

    file: Path
    conditions: str
    times: Mapping[str, float]

    @classmethod
    def read(cls, file: Path) -> Benchmark:
        """Read a ``report.json`` of ``benchmark.py --subjects CONFIG ...``, of which the first input is taken.

        Raises:
            UserError: If the file is no such report.
        """
        try:
            report = json.loads(file.read_text())
            mode, comparison = report['settings']['mode'], report['comparisons'][0]
            times = {result['backbone']: result['median_s'] for result in comparison['results']}
            size = 'x'.join(str(comparison['input'][side]) for side in ('batch', 'height', 'width'))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f'{file} is no report.json of benchmark.py: {error}') from error
        return cls(file, f'{mode}, {size}', times)


def draw_times(plan: Plan, root: Path, benchmarks: Sequence[Benchmark], out_file: Path) -> None:
    """Draw the results of each arm against the time that its backbone takes, a panel for each benchmark.

    Args:
        plan (Plan): The experiment; the results are those of its first column.
        root (Path): Its folder.
        benchmarks (Sequence[Benchmark]): What has been timed.
        out_file (Path): Where the picture goes.

    Raises:
        UserError: If a benchmark has none of the arms that have results.
    """
    column = next(iter(plan.columns))
    arms = [arm for arm in plan.arms if column in arm.commands]
    summaries = summarise(plan, root)
    panels = []
    for benchmark in benchmarks:
        curves, times = [], benchmark.times
        for arm in arms:
            words = shlex.split(plan.command(arm, column, arm.seeds[0], root))
            found = [times[name] for name in (Path(word).stem for word in words) if times.get(name)]
            if found and column in summaries[arm.name]:
                values = sorted(summaries[arm.name][column].values.values())
                curves.append(Curve(arm.title, [(found[0] * 1e3, value) for value in values], dict(marker='.')))
        if not curves:
            raise UserError(f'{benchmark.file} has the config of no arm with results; it has {", ".join(times)}')
        panels.append(Panel(plan.metric, f'time of the backbone, ms ({benchmark.conditions})', curves))
    draw_panels(panels, out_file)


def _curves(plan: Plan, root: Path) -> Panel:
    """Mean over seeds of what the validations of trainings gave."""
    curves: dict[tuple[str, str], list] = {}
    unit = 'iteration'
    for arm in plan.arms:
        for column in plan.columns:
            found = _column(plan, arm, column, root)
            trainings = {seed: dict(results) for seed, results in found.items() if len(results) > 1}
            if not trainings:
                continue
            steps = sorted(set.intersection(*map(set, trainings.values())))
            points = [(step, plan.scale * mean(values[step] for values in trainings.values())) for step in steps]
            curves[arm.title, column] = points
            unit = Log.read(Run(plan, arm, next(iter(trainings)), column, root).folder).unit(plan.metric)
    several = len({column for _, column in curves}) > 1
    return Panel(
        plan.metric,
        unit,
        [
            Curve(f'{title}, {plan.columns[column]}' if several else title, points, dict(marker='.'))
            for (title, column), points in curves.items()
        ],
    )
