"""Plots of measurements, drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from .measure import Comparison, Result

_OURS, _PEERS = 'tab:orange', 'tab:blue'


def plot_comparisons(comparisons: Sequence[Comparison], caption: str) -> Figure:
    """Draw time and memory by backbone, a row of plots for each input.

    Args:
        comparisons: What was measured; backbones that failed are left out.
        caption: What stands above all.

    Returns:
        The figure.
    """
    bars = max(len(comparison.results) for comparison in comparisons)
    figure = Figure(figsize=(11, 1 + len(comparisons) * (1 + 0.24 * bars)), layout='constrained')
    figure.suptitle(caption, fontsize=8)
    rows = figure.subplots(len(comparisons), 2, squeeze=False)
    for (time_axes, memory_axes), comparison in zip(rows, comparisons, strict=True):
        done = [result for result in comparison.results if result.error is None]
        times = [result.median * 1e3 for result in done]
        _draw_bars(time_axes, done, times, f'{comparison.size.title}: time (ms), quartiles')
        below = [result.median * 1e3 - result.quantile(0.25) * 1e3 for result in done]
        above = [result.quantile(0.75) * 1e3 - result.median * 1e3 for result in done]
        time_axes.errorbar(times, range(len(done)), xerr=[below, above], fmt='none', ecolor='black', capsize=2)
        _draw_bars(memory_axes, done, [result.memory_mb for result in done], f'{comparison.size.title}: memory (MB)')
    return figure


def _draw_bars(axes: Axes, results: Sequence[Result], values: Sequence[float], title: str) -> None:
    names = [result.subject.name for result in results]
    colours = [_PEERS if result.subject.toolbox else _OURS for result in results]
    places = range(len(results))
    axes.barh(places, values, color=colours)
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=9, loc='left')
    axes.grid(axis='x', alpha=0.3)
    axes.set_axisbelow(True)


def plot_growth(growth: Sequence[Comparison], caption: str) -> Figure:
    """Draw time and memory against pixels, on logarithmic axes.

    Args:
        growth: Comparisons of the same backbones at increasing inputs.
        caption: What stands above all.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(11, 5), layout='constrained')
    figure.suptitle(caption, fontsize=8)
    time_axes, memory_axes = figure.subplots(1, 2)
    for subject in [result.subject for result in growth[0].results]:
        results = [(comparison.size.pixels, comparison.result(subject.name)) for comparison in growth]
        style = dict(marker='o', label=subject.name, linestyle='--' if subject.toolbox else '-')
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
        axes.legend(fontsize=8)
    return figure


def _draw_line(axes: Axes, points: Sequence[tuple[int, float | None]], style: dict) -> None:
    points = [(x, y) for x, y in points if y]  # neither failures nor zeros have a place on a logarithmic axis
    axes.plot([x for x, _ in points], [y for _, y in points], **style)
