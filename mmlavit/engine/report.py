"""What is left of a run for people to look at: curves, a sheet of pictures, a short summary."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

_GAP = 6


def newest(folder: Path, pattern: str) -> Path:
    """Find the file of the latest run below a work dir; mmengine names its folders by time.

    Args:
        folder (Path): The work dir.
        pattern (str): Such as '*/vis_data/scalars.json'.

    Returns:
        Path: The last match in alphabetical order.

    Raises:
        FileNotFoundError: If nothing matches.
    """
    found = sorted(folder.glob(pattern))
    if not found:
        raise FileNotFoundError(f'no {pattern} in {folder}')
    return found[-1]


def read_scalars(path: Path, metrics: Sequence[str]) -> tuple[dict[str, list], dict[str, list]]:
    """Read the log of scalars that mmengine's ``LocalVisBackend`` writes.

    Args:
        path (Path): A ``scalars.json``, one JSON object per line.
        metrics (Sequence[str]): Keys of the validation metrics to collect.

    Returns:
        tuple[dict, dict]: Points (step, value) of the training losses, by name, and of the metrics.
    """
    losses, scores = {}, {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        validated = [key for key in metrics if key in row]
        for key in validated:
            scores.setdefault(key, []).append((row['step'], row[key]))
        if not validated:
            for key, value in row.items():
                if 'loss' in key.rsplit('.', 1)[-1]:
                    losses.setdefault(key, []).append((row['step'], value))
    return losses, scores


def plot_curves(scalars: Path, metrics: Mapping[str, tuple[str, float]], out_file: Path, unit: str) -> None:
    """Plot losses and validation metrics of a training.

    Args:
        scalars (Path): Its ``scalars.json``.
        metrics (Mapping): For the key of each validation metric, what to call it and its largest
            value, by which it is divided.
        out_file (Path): Where the picture goes.
        unit (str): What validation counts: 'epoch' or 'iteration'.
    """
    from matplotlib.figure import Figure

    losses, scores = read_scalars(scalars, list(metrics))
    figure = Figure(figsize=(10, 4), layout='constrained')
    left, right = figure.subplots(1, 2)
    # The total last, on top of its parts.
    for name in sorted(losses, key=lambda key: key == 'loss'):
        width, alpha = (2.5, 1.0) if name == 'loss' else (1.0, 0.7)
        left.plot(*zip(*losses[name], strict=True), label=name, linewidth=width, alpha=alpha)
    left.set(xlabel='iteration', ylabel='training loss', yscale='log')
    for key, points in scores.items():
        name, largest = metrics[key]
        steps, values = zip(*points, strict=True)
        right.plot(steps, [value / largest for value in values], marker='o', label=name)
    right.set(xlabel=unit, ylabel='validation', ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize='small')
    figure.savefig(out_file, dpi=120)


def make_sheet(pictures: Sequence[Path], out_file: Path, columns: int = 3) -> None:
    """Put pictures side by side on one sheet.

    Args:
        pictures (Sequence[Path]): At least one picture; all are shown at the first one's size.
        out_file (Path): Where the sheet goes.
        columns (int): Pictures in a row.
    """
    from PIL import Image

    images = [Image.open(path).convert('RGB') for path in pictures]
    width, height = images[0].size
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    size = (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP)
    sheet = Image.new('RGB', size, 'white')
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        place = (column * (width + _GAP), row * (height + _GAP))
        sheet.paste(image.resize((width, height)), place)
    sheet.save(out_file)


def format_seconds(seconds: float) -> str:
    """Write a duration for people.

    Args:
        seconds (float): Its length.

    Returns:
        str: Such as '42 s' or '5 min 03 s'.
    """
    minutes, rest = divmod(round(seconds), 60)
    return f'{minutes} min {rest:02d} s' if minutes else f'{rest} s'


def format_summary(title: str, rows: Mapping[str, object]) -> str:
    """Write a title and aligned rows, numbers with three decimals.

    Args:
        title (str): The headline.
        rows (Mapping): Names and values.

    Returns:
        str: The lines.
    """
    width = max(len(name) for name in rows)
    lines = [title, '-' * len(title)]
    for name, value in rows.items():
        shown = f'{value:.3f}' if isinstance(value, float) else value
        lines.append(f'{name:<{width}}  {shown}')
    return '\n'.join(lines)
