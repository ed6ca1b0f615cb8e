"""The logs of trainings, read from the files that mmengine writes, and their curves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from mmlavit.errors import UserError

from .figures import save_figure, write_legend

Row = dict[str, Any]
Points = list[tuple[float, float]]

SCALARS = 'vis_data/scalars.json'

MAIN_KEYS = ('loss', 'lr', 'accuracy/top1', 'coco/bbox_mAP', 'coco/segm_mAP', 'mIoU')
"""Loss, learning rate and the main metrics of the three tasks."""

# Where rows stand, and what is the same in all of them.
_NO_CURVE = {'step', 'iter', 'epoch'}
_PANEL_SIZE = (5, 4)  # inches
_LEGEND_WIDTH = 60  # characters that fit under a panel


@dataclass(frozen=True)
class Log:
    """What a training logged, in its order.

    Args:
        rows (list[Row]): Names and numbers; a row each time that something was logged.
        firsts (Sequence[Row]): Those of ``rows`` that are the first of training after a start, which took time.
    """

    rows: list[Row]
    firsts: Sequence[Row] = ()

    @classmethod
    def read(cls, path: Path) -> Log:
        """Read what a training logged, also if it was stopped and resumed.

        Args:
            path (Path): Its work dir, the folder of one start in it, or a ``scalars.json``.

        Returns:
            Log: All rows. Where a later start repeats steps of an earlier one, the later ones count.

        Raises:
            UserError: If there is no log of a training.
        """
        if path.is_dir():
            files = sorted(path.glob(SCALARS)) or sorted(path.glob(f'*/{SCALARS}'))  # mmengine names folders by time
        else:
            files = [path] if path.is_file() else []
        if not files:
            raise UserError(f'{path} has no log of a training; expected a work dir (with */{SCALARS}) or such a file')
        rows, firsts = [], []
        for file in files:
            later = read_rows(file)
            steps = [row['step'] for row in later if is_training(row)]
            start = steps[0] if steps else math.inf
            from_the_start = start <= min((b - a for a, b in pairwise(steps)), default=0)
            if from_the_start and not _was_resumed(file):  # a training of its own
                rows, firsts = [], []
            repeated = (index for index, row in enumerate(rows) if is_training(row) and row['step'] >= start)
            del rows[next(repeated, len(rows)) :]
            later = place_validations(later, rows[-1]['step'] if rows else 0)
            firsts += [row for row in later if is_training(row)][:1]
            rows += later
        if not any(map(is_training, rows)):
            raise UserError(f'{path} has no row of a training; it may have stopped before its first log')
        return cls(rows, firsts)

    @cached_property
    def trained(self) -> list[Row]:
        """The rows of training, without those of validation."""
        return [row for row in self.rows if is_training(row)]

    @cached_property
    def validated(self) -> list[Row]:
        """The rows of validation."""
        return [row for row in self.rows if not is_training(row)]

    def keys(self, training: bool = False) -> list[str]:
        """List what can be drawn, in its order; with ``training`` only what was logged of the training."""
        rows = self.trained if training else self.rows
        keys = {key: None for row in rows for key, value in row.items() if isinstance(value, (int, float))}
        return [key for key in keys if key not in _NO_CURVE]

    def points(self, key: str) -> Points:
        """Give the points (step, value) of a key, of training only if it was logged there; else of validation."""
        rows = self.trained if key in self.keys(training=True) else self.rows
        return [(row['step'], row[key]) for row in rows if key in row]

    def unit(self, key: str) -> str:
        """Tell what the steps of a key count: 'iteration' or 'epoch'."""
        by_epoch = any('epoch' in row for row in self.trained)
        return 'epoch' if by_epoch and key not in self.keys(training=True) else 'iteration'

    def means(self) -> dict[str, float]:
        """Average the pace.

        Returns:
            dict[str, float]: 'time' and 'data_time', the seconds of an iteration and of waiting for data in it,
            averaged without the first row after each start; 'memory', the peak in MB. What was not logged is missing.
        """
        means, firsts = {}, {id(row) for row in self.firsts}
        pace = [row for row in self.trained if id(row) not in firsts]
        for key in ('time', 'data_time'):
            values = [row[key] for row in pace or self.trained if key in row]
            if values:
                means[key] = sum(values) / len(values)
        memory = [row['memory'] for row in self.trained if 'memory' in row]
        return {**means, 'memory': max(memory)} if memory else means


def _was_resumed(scalars: Path) -> bool:
    """Whether the config beside a ``scalars.json``, which mmengine writes at the start, says so."""
    config = scalars.with_name('config.py')
    return config.is_file() and 'resume = True' in config.read_text(errors='replace').splitlines()


def place_validations(rows: list[Row], step: int = 0) -> list[Row]:
    """Give validations the step of the training row before them, where mmengine says 0 of them all.

    It does for trainings by iterations whose ``LoggerHook`` logs metrics by epoch, as mmdet's configs have it.

    Args:
        rows (list[dict]): Of one log.
        step (int): That of the last row of an earlier start.

    Returns:
        list[dict]: The rows, those of validations with their step.
    """
    if any('epoch' in row or (row['step'] and not is_training(row)) for row in rows):
        return rows
    placed = []
    for row in rows:
        step = row['step'] or step
        placed.append({**row, 'step': step})
    return placed


def read_rows(path: Path, need: str | None = 'step') -> list[Row]:
    """Read a log of mmengine's, one JSON object per line; the last is left out if it was not written to its end.

    Args:
        path (Path): A ``scalars.json``, or the file of a test.
        need (str, optional): What each row has; that of a test has no step.

    Returns:
        list[dict]: The rows.

    Raises:
        UserError: If it is something else.
    """
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError:
        raise UserError(f'{path} is not a log of scalars; expected DIR/{SCALARS} of a training') from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines) and (number > 1 or line.startswith('{')):
                break  # the training was stopped while it wrote
            row = None
        if not isinstance(row, dict) or (need and need not in row):
            raise UserError(f'{path} is not a log of scalars (line {number}); expected DIR/{SCALARS} of a training')
        rows.append(row)
    return rows


def is_training(row: Row) -> bool:
    """Tell rows of training from those of validation; both have times."""
    return 'lr' in row


def resolve_keys(patterns: Iterable[str], logs: Iterable[Log]) -> list[str]:
    """Find the names that patterns mean.

    Args:
        patterns (Iterable[str]): Names, or patterns such as 'coco/*'.
        logs (Iterable[Log]): What trainings logged.

    Returns:
        list[str]: The names that at least one training logged, each once.

    Raises:
        UserError: If a pattern matches none; the line lists what there is.
    """
    known = sorted({key for log in logs for key in log.keys()})
    found = {}
    for pattern in patterns:
        matches = [pattern] if pattern in known else [key for key in known if fnmatchcase(key, pattern)]
        if not matches:
            raise UserError(f'no log has {pattern!r}; expected some of: {", ".join(known)}')
        found.update(dict.fromkeys(matches))
    return list(found)


def main_keys(logs: Iterable[Log]) -> list[str]:
    """List what is worth drawing of any training: :data:`MAIN_KEYS`, as far as they were logged."""
    logged = {key for log in logs for key in log.keys()}
    return [key for key in MAIN_KEYS if key in logged]


class Curve(NamedTuple):
    """One line of a panel.

    Args:
        name (str): What the legend calls it.
        points (Points): Step and value of each point.
        style (Mapping): Options of matplotlib's ``plot``.
    """

    name: str
    points: Points
    style: Mapping[str, Any] = {}


class Panel(NamedTuple):
    """Curves over the same axes.

    Args:
        title (str): What the values are.
        unit (str): What the steps count: 'iteration' or 'epoch'.
        curves (Sequence[Curve]): What is drawn; the last lies on top.
        log (bool): Whether values are shown on a logarithmic scale.
        limits (tuple[float, float], optional): Lowest and highest value shown; None: as the values are.
    """

    title: str
    unit: str
    curves: Sequence[Curve]
    log: bool = False
    limits: tuple[float, float] | None = None


def default_colours(count: int) -> list[str]:
    """Give the first colours of matplotlib's."""
    return [f'C{i}' for i in range(count)]


def make_panel(key: str, names: Sequence[str], logs: Sequence[Log], colours: Sequence[str] = ()) -> Panel:
    """Collect the curves of one key.

    Args:
        key (str): What was logged.
        names (Sequence[str]): What the legend calls the trainings.
        logs (Sequence[Log]): Their logs; each has the same colour in all panels.
        colours (Sequence[str]): Their colours; by default the first of matplotlib's.

    Returns:
        Panel: The curves.
    """
    curves = [
        Curve(name, log.points(key), dict(color=colour, marker='' if key in log.keys(training=True) else 'o'))
        for name, log, colour in zip(names, logs, colours or default_colours(len(logs)), strict=True)
    ]
    unit = ' or '.join(sorted({log.unit(key) for log in logs if log.points(key)}))
    positive = all(value > 0 for curve in curves for _, value in curve.points)
    return Panel(key, unit, curves, log='loss' in key and positive)


def draw_panels(panels: Sequence[Panel], out_file: Path, columns: int = 2) -> None:
    """Draw panels side by side into a picture, each with its legend below.

    Args:
        panels (Sequence[Panel]): At least one.
        out_file (Path): Where the picture goes; its folder is made.
        columns (int): Panels in a row.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(_PANEL_SIZE[0] * columns, _PANEL_SIZE[1] * rows), layout='constrained')
    for axes, panel in zip_longest(figure.subplots(rows, columns, squeeze=False).flat, panels):
        if panel is None:
            axes.set_axis_off()
            continue
        curves = [curve for curve in panel.curves if curve.points]
        for curve in curves:
            alone = dict(marker='o') if len(curve.points) == 1 and not curve.style.get('marker') else {}
            axes.plot(*zip(*curve.points, strict=True), **{**curve.style, **alone})
        axes.set(xlabel=panel.unit, ylabel=panel.title, yscale='log' if panel.log else 'linear', ylim=panel.limits)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        if curves:
            longest = max(len(curve.name) for curve in curves) + 6  # with the line before it
            place = dict(loc='upper center', bbox_to_anchor=(0.5, -0.13), ncols=min(4, _LEGEND_WIDTH // longest) or 1)
            write_legend(axes, axes.lines, [curve.name for curve in curves], fontsize='small', frameon=False, **place)
    save_figure(figure, out_file)
