"""The logs of trainings, read from the files that mmengine writes, and their curves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from mmlavit.errors import UserError

Rows = list[dict[str, Any]]
"""What a training logged, in its order: one dict of names and numbers each time."""

LOG = 'vis_data/scalars.json'

# Where rows stand, and what is the same in all of them.
_NO_CURVE = {'step', 'iter', 'epoch'}
_SIZE = (5, 4)


class Curve(NamedTuple):
    """One line of a panel.

    Args:
        name: What the legend calls it.
        points: Step and value of each point.
        style: Options of matplotlib's ``plot``.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: Mapping[str, Any] = {}


class Panel(NamedTuple):
    """Curves over the same axes.

    Args:
        title: What the values are.
        unit: What the steps count: 'iteration' or 'epoch'.
        curves: What is drawn; the last lies on top.
        log: Whether values are shown on a logarithmic scale.
        limits: Lowest and highest value shown; None: as the values are.
    """

    title: str
    unit: str
    curves: Sequence[Curve]
    log: bool = False
    limits: tuple[float, float] | None = None


def read_rows(path: Path) -> Rows:
    """Read the log of scalars that mmengine's ``LocalVisBackend`` writes.

    Args:
        path (Path): A ``scalars.json``, one JSON object per line.

    Returns:
        Rows: Its rows; the last one is left out if it was not written to its end.

    Raises:
        UserError: If the file is something else.
    """
    lines = path.read_text().splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines) > 1:
                break  # the training was stopped while it wrote
            row = None
        if not isinstance(row, dict) or 'step' not in row:
            raise UserError(f'{path} is no log of scalars (line {number}); expected DIR/{LOG} of a training')
        rows.append(row)
    return rows


def read_run(path: Path) -> Rows:
    """Read what a training logged, also if it was stopped and resumed.

    Args:
        path (Path): Its work dir, the folder of one start in it, or a ``scalars.json``.

    Returns:
        Rows: All rows. Where a later start repeats steps of an earlier one, the later ones count.

    Raises:
        UserError: If there is no log.
    """
    if path.is_dir():
        files = sorted(path.glob(LOG)) or sorted(path.glob(f'*/{LOG}'))  # mmengine names folders by time
    else:
        files = [path] if path.is_file() else []
    if not files:
        raise UserError(f'{path} has no log of a training; expected a work dir (with */{LOG}) or such a file')
    rows = []
    for file in files:
        later = read_rows(file)
        start = next((row['step'] for row in later if is_training(row)), math.inf)
        repeated = (index for index, row in enumerate(rows) if is_training(row) and row['step'] >= start)
        del rows[next(repeated, len(rows)) :]
        rows += later
    return rows


def is_training(row: Mapping[str, Any]) -> bool:
    """Tell rows of training from those of validation; both have times."""
    return 'lr' in row


def counts_epochs(rows: Rows) -> bool:
    """Tell whether the steps of the validation are epochs; otherwise they are iterations."""
    return any('epoch' in row for row in rows if is_training(row))


def keys_of(rows: Rows) -> list[str]:
    """List what a training logged that can be drawn, sorted."""
    keys = {key for row in rows for key, value in row.items() if isinstance(value, (int, float))}
    return sorted(keys - _NO_CURVE)


def points_of(rows: Rows, key: str) -> list[tuple[float, float]]:
    """Give the points (step, value) of one curve.

    Args:
        rows (Rows): What a training logged.
        key (str): A loss or the like, which is taken from training only, or a metric.

    Returns:
        list[tuple[float, float]]: The points; none if the training did not log it.
    """
    trained = [row for row in rows if is_training(row) and key in row]
    return [(row['step'], row[key]) for row in trained or rows if key in row]


def resolve_keys(patterns: Iterable[str], runs: Iterable[Rows]) -> list[str]:
    """Find the names that patterns mean.

    Args:
        patterns (Iterable[str]): Names, or patterns such as 'coco/*'.
        runs (Iterable[Rows]): What trainings logged.

    Returns:
        list[str]: The names that at least one training logged, each once.

    Raises:
        UserError: If a pattern matches none; the line lists what there is.
    """
    known = sorted({key for rows in runs for key in keys_of(rows)})
    found = {}
    for pattern in patterns:
        matches = [pattern] if pattern in known else [key for key in known if fnmatchcase(key, pattern)]
        if not matches:
            raise UserError(f'no log has {pattern!r}; expected some of: {", ".join(known)}')
        found.update(dict.fromkeys(matches))
    return list(found)


def mean_times(rows: Rows) -> dict[str, float]:
    """Average what a training logged about its pace.

    Args:
        rows (Rows): What it logged.

    Returns:
        dict[str, float]: 'time' and 'data_time', the seconds of an iteration and of waiting for data in
        it, averaged without the first row, which has the start; 'memory', the peak in MB. What it did
        not log is missing.
    """
    trained = [row for row in rows if is_training(row)]
    steady = trained[1:] or trained
    means = {}
    for key in ('time', 'data_time'):
        values = [row[key] for row in steady if key in row]
        if values:
            means[key] = sum(values) / len(values)
    memory = [row['memory'] for row in trained if 'memory' in row]
    return {**means, 'memory': max(memory)} if memory else means


def draw_panels(panels: Sequence[Panel], out_file: Path, columns: int = 2) -> None:
    """Draw panels side by side into a picture.

    Args:
        panels (Sequence[Panel]): At least one.
        out_file (Path): Where the picture goes; its folder is made.
        columns (int): Panels in a row.
    """
    from matplotlib.figure import Figure

    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(_SIZE[0] * columns, _SIZE[1] * rows), layout='constrained')
    for axes, panel in zip_longest(figure.subplots(rows, columns, squeeze=False).flat, panels):
        if panel is None:
            axes.set_axis_off()
            continue
        for curve in panel.curves:
            axes.plot(*zip(*curve.points, strict=True), label=curve.name, **curve.style)
        axes.set(xlabel=panel.unit, ylabel=panel.title, yscale='log' if panel.log else 'linear', ylim=panel.limits)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize='small')
    out_file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_file, dpi=120)
