"""Tables, documents and JSON of measurements."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich import box
from rich.table import Table

from mmlavit.utils.local_files import write_file

from ..figures import save_figure
from ..machine import device_name, software, versions
from .measure import Comparison
from .plots import plot_comparisons, plot_growth
from .worker import Settings

_NOTHING = '–'
_WORDS = ('backbone', 'which is')
_MODES = {'inference': 'inference', 'train': 'training step (forward, backward)'}


@dataclass
class Report:
    """All that one command measures.

    Args:
        command (str): The command.
        reference (str): Name of the backbone that ratios are to.
        settings (Settings): How the backbones of the comparisons are run.
        growth_settings (Settings): How those of the growth are run; only ``memory_base`` differs.
        rounds (int): Rounds.
        iterations (int): Timed iterations of a backbone in a round; one more is not timed.
        comparisons (list[Comparison]): One for each input.
        growth (list[Comparison]): One for each of increasing inputs.
    """

    command: str
    reference: str
    settings: Settings
    growth_settings: Settings
    rounds: int
    iterations: int
    comparisons: list[Comparison] = field(default_factory=list)
    growth: list[Comparison] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write report.md, report.json, and time.png and growth.png if there is something to draw.

        Args:
            folder (Path): Where; made if it does not exist.
        """
        write_file(folder / 'report.md', self.to_markdown().encode())
        write_file(folder / 'report.json', f'{json.dumps(self.to_json(), indent=1)}\n'.encode())
        caption = f'{self.conditions()}\n{software()}'
        if self.comparisons:
            save_figure(plot_comparisons(self.comparisons, caption), folder / 'time.png')
        if self.growth:
            save_figure(plot_growth(self.growth, caption), folder / 'growth.png')

    def conditions(self) -> str:
        """Return one line that says what is run on what."""
        settings = self.settings
        autocast = '' if settings.dtype == 'fp32' else ' autocast'
        threads = f'{settings.threads} CPU thread{"s" if settings.threads > 1 else ""}'
        device = device_name(settings.device)
        return f'{_MODES[settings.mode]}, {settings.dtype}{autocast}; {device}, {threads}'

    def method(self) -> str:
        """Return one line that says how the numbers were measured."""
        base = self.settings.memory_base
        memory = (
            'peak of what tensors take, weights included'
            if self.settings.device == 'cuda'
            else f'growth of the peak resident memory since a run at 1x{base}x{base}'
        )
        return (
            f'The backbones take turns, each of one untimed and {self.iterations} timed '
            f'iteration{"s" if self.iterations > 1 else ""}; rounds: {self.rounds}, after a warm-up of '
            f'{self.settings.warmup}. Times are medians. Ratios are of medians; in brackets, the median of '
            f'the ratios within a round. Memory: {memory}. Multiply-adds: for one image.'
        )

    def growth_method(self) -> str:
        """Return one line that says how growth was measured."""
        base = self.growth_settings.memory_base
        memory = '' if self.settings.device == 'cuda' else f' Memory: here since a run at 1x{base}x{base}.'
        factor = ''
        if len(self.growth) > 1:
            first, last = self.growth[1].size, self.growth[-1].size
            pixels = last.pixels / first.pixels
            factor = f' Factor: from {first.image} to {last.image}, {pixels:.3g} times the pixels.'
        return f'Batch {self.growth[0].size.batch}.{memory}{factor}'

    def to_json(self) -> dict:
        """Return everything as plain data."""
        return {
            'command': self.command,
            'conditions': self.conditions(),
            'device': device_name(self.settings.device),
            'cpu': device_name('cpu'),
            'versions': versions(),
            'settings': asdict(self.settings),
            'rounds': self.rounds,
            'iterations': self.iterations,
            'reference': self.reference,
            'comparisons': [_to_json(comparison, self.reference) for comparison in self.comparisons],
            'growth': [_to_json(comparison) for comparison in self.growth],
            'growth_factors': growth_factors(self.growth),
            'growth_memory_base': self.growth_settings.memory_base,
        }

    def to_markdown(self) -> str:
        """Return the report as a document."""
        conditions = self.conditions()
        lines = ['# Benchmark of backbones', '', f'{conditions[0].upper()}{conditions[1:]}.', '', f'{software()}.']
        lines += ['', self.method(), '', '```bash', self.command, '```', '']
        for comparison in self.comparisons:
            lines += [f'## {comparison.size.title}', '', *_markdown(comparison_rows(comparison, self.reference)), '']
            if rows := runtime_rows(comparison, self.reference):
                lines += [*_markdown(rows), '']
            lines += [f'- {failure}' for failure in failures([comparison])] + ['']
        if self.comparisons:
            lines += ['![Time and memory by backbone](time.png)', '']
        if self.growth:
            lines += ['## Growth', '', self.growth_method(), '', *_markdown(growth_rows(self.growth)), '']
            lines += [f'- {failure}' for failure in failures(self.growth)] + ['']
            lines += ['![Time and memory against the size of the image](growth.png)', '']
        return '\n'.join(lines).replace('\n\n\n', '\n\n')


def comparison_rows(comparison: Comparison, reference: str) -> list[list[str]]:
    """Lay out a comparison.

    Args:
        comparison (Comparison): What was measured.
        reference (str): Name of the backbone that ratios are to.

    Returns:
        list[list[str]]: The header and the rows of a table.
    """
    rows = [['backbone', 'which is', 'parameters (M)', 'multiply-adds (G)', 'time (ms)', 'quartiles (ms)']]
    rows[0] += [f'time / {reference}', 'memory (MB)', f'memory / {reference}']
    for result in comparison.results:
        row = [result.subject.name, result.subject.title]
        if result.error is not None:
            rows.append([*row, _NOTHING, _NOTHING, 'failed', *[_NOTHING] * 4])
            continue
        low, median, high = (_milliseconds(result.quantile(q)) for q in (0.25, 0.5, 0.75))
        ratios = result.ratios_to(comparison.result(reference))
        row += [f'{result.params / 1e6:.2f}', f'{result.macs / 1e9:.2f}', median, f'{low}–{high}']
        rows.append([*row, _time_ratio(ratios), _megabytes(result.memory_mb), _ratio(ratios['memory'])])
    return rows


def runtime_rows(comparison: Comparison, reference: str) -> list[list[str]]:
    """Lay out a comparison of backbones in several runtimes: times by runtime, and best against best.

    Args:
        comparison (Comparison): What was measured.
        reference (str): Name of a measured backbone; ratios are to its best time.

    Returns:
        list[list[str]]: The header and the rows of a table, empty where there is one runtime.
    """
    times: dict[str, dict[str, float]] = {}
    for result in comparison.results:
        row = times.setdefault(result.subject.backbone, {})
        if result.median is not None:
            row[result.subject.runtime] = result.median
    runtimes = list(dict.fromkeys(result.subject.runtime for result in comparison.results))
    if len(runtimes) < 2:
        return []
    best = {name: min(row, key=row.get) for name, row in times.items() if row}
    base = comparison.result(reference).subject.backbone
    rows = [['backbone', *(f'{runtime} (ms)' for runtime in runtimes), 'best', f'best / best of {base}']]
    for name, row in times.items():
        cells = [_milliseconds(row[runtime]) if runtime in row else _NOTHING for runtime in runtimes]
        ratio = row[best[name]] / times[base][best[base]] if name in best and base in best else None
        rows.append([name, *cells, best.get(name, _NOTHING), _ratio(ratio)])
    return rows


def growth_rows(growth: Sequence[Comparison]) -> list[list[str]]:
    """Lay out comparisons at increasing inputs.

    Args:
        growth (Sequence[Comparison]): Comparisons of the same backbones.

    Returns:
        list[list[str]]: The header and the rows of a table.
    """
    images = [comparison.size.image for comparison in growth]
    rows = [['backbone', *(f'{image} (ms)' for image in images), 'factor']]
    rows[0] += [*(f'{image} (MB)' for image in images), 'factor']
    for name, factors in growth_factors(growth).items():
        results = [comparison.result(name) for comparison in growth]
        times = ['failed' if result.error else _milliseconds(result.median) for result in results]
        memory = [_NOTHING if result.error else _megabytes(result.memory_mb) for result in results]
        rows.append([name, *times, _time_ratio(factors), *memory, _ratio(factors['memory'])])
    return rows


def growth_factors(growth: Sequence[Comparison]) -> dict[str, dict[str, float | None]]:
    """Compute by what time and memory grow from the second input to the last.

    The first input is left out, since there the fixed cost of calling operators weighs most.

    Args:
        growth (Sequence[Comparison]): Comparisons of the same backbones at increasing inputs.

    Returns:
        dict[str, dict[str, float | None]]: As :meth:`Result.ratios_to`, by name of the backbone.
    """
    if not growth:
        return {}
    first, last = growth[min(1, len(growth) - 1)], growth[-1]
    return {result.subject.name: result.ratios_to(first.result(result.subject.name)) for result in last.results}


def failures(comparisons: Sequence[Comparison]) -> list[str]:
    """Return one line for each backbone that failed, with the reason."""
    return [
        f'{result.subject.name} failed at {comparison.size}: {result.error}'
        for comparison in comparisons
        for result in comparison.results
        if result.error is not None
    ]


def terminal_table(title: str, rows: list[list[str]]) -> Table:
    """Lay out a table for a terminal.

    Args:
        title (str): What stands above it.
        rows (list[list[str]]): The header, and the cells; all but words are aligned to the right.

    Returns:
        Table: The table.
    """
    table = Table(box=box.SIMPLE, title=title)
    for name, *cells in zip(*rows, strict=True):
        # Where there is no space for all, headers and titles break into lines, and never a number or a name.
        width = None if name == 'which is' else max(map(len, cells), default=0)
        table.add_column(name, justify='left' if name in _WORDS else 'right', min_width=width)
    for row in rows[1:]:
        table.add_row(*row)
    return table


def _markdown(rows: list[list[str]]) -> list[str]:
    alignment = ['---' if name in _WORDS else '---:' for name in rows[0]]
    return [f'| {" | ".join(cells)} |' for cells in (rows[0], alignment, *rows[1:])]


def _to_json(comparison: Comparison, reference: str | None = None) -> dict:
    results = []
    for result in comparison.results:
        entry = dict(backbone=result.subject.name, title=result.subject.title, params=result.params, macs=result.macs)
        entry.update(median_s=result.median, quartiles_s=[result.quantile(0.25), result.quantile(0.75)])
        entry.update(rounds_s=result.rounds, memory_mb=result.memory_mb)
        if reference is not None:
            entry['ratios'] = result.ratios_to(comparison.result(reference))
        results.append({**entry, 'error': result.error})
    return dict(input=asdict(comparison.size), results=results)


def _milliseconds(seconds: float) -> str:
    decimals = 0 if seconds >= 0.1 else 1 if seconds >= 0.01 else 2
    return f'{seconds * 1e3:.{decimals}f}'


def _megabytes(value: float | None) -> str:
    return _NOTHING if value is None else f'{value:.0f}'


def _ratio(value: float | None) -> str:
    return _NOTHING if value is None else f'{value:.2f}'


def _time_ratio(ratios: Mapping[str, float | None]) -> str:
    """Write a ratio of times, behind it that within rounds."""
    within = ratios['time_within_rounds']
    return _ratio(ratios['time']) + ('' if within is None else f' ({within:.2f})')
