"""What is left of a run for people to look at: curves, a sheet of pictures, a short summary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from .curves import Curve, Panel, draw_panels, is_training, keys_of, points_of, read_rows

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
    """Collect the losses and some metrics of a training.

    Args:
        path (Path): Its ``scalars.json``.
        metrics (Sequence[str]): Keys of the validation metrics to collect.

    Returns:
        tuple[dict, dict]: Points (step, value) of the training losses, by name, and of the metrics.
    """
    rows = read_rows(path)
    losses = [key for key in keys_of([row for row in rows if is_training(row)]) if 'loss' in key.rsplit('.', 1)[-1]]
    scores = {key: points_of(rows, key) for key in metrics}
    return {key: points_of(rows, key) for key in losses}, {key: points for key, points in scores.items() if points}


def plot_curves(scalars: Path, metrics: Mapping[str, tuple[str, float]], out_file: Path, unit: str) -> None:
    """Plot losses and validation metrics of a training.

    Args:
        scalars (Path): Its ``scalars.json``.
        metrics (Mapping): For the key of each validation metric, what to call it and its largest
            value, by which it is divided.
        out_file (Path): Where the picture goes.
        unit (str): What validation counts: 'epoch' or 'iteration'.
    """
    losses, scores = read_scalars(scalars, list(metrics))
    # The total last, on top of its parts.
    trained = [
        Curve(key, losses[key], dict(linewidth=2.5) if key == 'loss' else dict(linewidth=1.0, alpha=0.7))
        for key in sorted(losses, key=lambda key: key == 'loss')
    ]
    validated = []
    for key, points in scores.items():
        name, largest = metrics[key]
        validated.append(Curve(name, [(step, value / largest) for step, value in points], dict(marker='o')))
    panels = [
        Panel('training loss', 'iteration', trained, log=True),
        Panel('validation', unit, validated, limits=(0, 1)),
    ]
    draw_panels(panels, out_file)


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
