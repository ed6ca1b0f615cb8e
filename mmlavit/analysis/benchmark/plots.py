"""Plots of measurements, drawn without a display."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ..figures import write_legend
from .measure import Comparison, Result

_OURS, _PEERS = 'tab:orange', 'tab:blue'
_CAPTION_WIDTH = 150  # characters that fit the figures at the caption's size


def plot_comparisons(comparisons: Sequence[Comparison], caption: str) -> Figure:
    """Draw time and memory by backbone, the fastest first, a row of plots for each input.

    Args:
        comparisons (Sequence[Comparison]): What was measured; backbones that failed are left out.
        caption (str): What stands above all.

    Returns:
        Figure: The figure.
    """
    bars = max(len(comparison.results) for comparison in comparisons)
    figure, rows = _make_figure(caption, height=1 + len(comparisons) * (1 + 0.24 * bars), rows=len(comparisons))
    for (time_axes, memory_axes), comparison in zip(rows, comparisons, strict=True):
        done = sorted((r for r in comparison.results if r.error is None), key=lambda result: result.median)
        low, times, high = ([result.quantile(q) * 1e3 for result in done] for q in (0.25, 0.5, 0.75))
        _draw_bars(time_axes, done, times, f'{comparison.size.title}: time (ms), quartiles')
        spread = [[t - q for t, q in zip(times, low, strict=True)], [q - t for t, q in zip(times, high, strict=True)]]
        time_axes.errorbar(times, range(len(done)), xerr=spread, fmt='none', ecolor='black', capsize=2)
        _draw_bars(
            memory_axes, done, [result.memory_mb or 0 for result in done], f'{comparison.size.title}: memory (MB)'
        )
    return figure


def _make_figure(caption: str, height: float, rows: int) -> tuple[Figure, np.ndarray]:
    """Make a figure with a caption and rows of two plots."""
    figure = Figure(figsize=(11, height), layout='constrained')
    lines = [part for line in caption.splitlines() for part in textwrap.wrap(line, _CAPTION_WIDTH)]
    figure.suptitle('\n'.join(lines), fontsize=8)
    return figure, figure.subplots(rows, 2, squeeze=False)


def _draw_bars(axes: Axes, results: Sequence[Result], values: Sequence[float], title: str) -> None:
    names = [result.subject.name for result in results]
    colours = [_OURS if result.subject.is_lavit else _PEERS for result in results]
    axes.barh(range(len(results)), values, color=colours)
    axes.set_yticks(range(len(results)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=9, loc='left')
    axes.grid(axis='x', alpha=0.3)
    axes.set_axisbelow(True)


def plot_growth(growth: Sequence[Comparison], caption: str) -> Figure:
    """Draw time and memory against pixels, on logarithmic axes.

    Args:
        growth (Sequence[Comparison]): Comparisons of the same backbones at increasing inputs.
        caption (str): What stands above all.

    Returns:
        Figure: The figure.
    """
    figure, [(time_axes, memory_axes)] = _make_figure(caption, height=5, rows=1)
    for subject in [result.subject for result in growth[0].results]:
        results = [(comparison.size.pixels, comparison.result(subject.name)) for comparison in growth]
        style = dict(marker='o', linestyle='-' if subject.is_lavit else '--')
        _draw_line(time_axes, [(pixels, result.median and result.median * 1e3) for pixels, result in results], style)
        _draw_line(memory_axes, [(pixels, result.memory_mb) for pixels, result in results], style)
    batch = growth[0].size.batch
    for axes, title in ((time_axes, 'time (ms)'), (memory_axes, 'memory (MB)')):
        axes.set_title(f'batch {batch}: {title}', fontsize=9, loc='left')
        if not any(len(line.get_xdata()) for line in axes.lines):
            continue  # everything failed, and a logarithmic axis cannot be empty
        axes.set(xscale='log', yscale='log')
        axes.set_xticks([c.size.pixels for c in growth], [c.size.image for c in growth], fontsize=8)
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter('{x:g}')
        axes.set_yticks([], minor=True)
        axes.grid(alpha=0.3)
        write_legend(axes, axes.lines, [result.subject.name for result in growth[0].results], fontsize=8)
    return figure


def _draw_line(axes: Axes, points: Sequence[tuple[int, float | None]], style: dict) -> None:
    points = [(x, y) for x, y in points if y]  # neither failures nor zeros have a place on a logarithmic axis
    axes.plot([x for x, _ in points], [y for _, y in points], **style)
