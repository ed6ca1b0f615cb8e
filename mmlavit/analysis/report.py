"""All pictures of a training in one report: an HTML page, with the pictures beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from mmlavit.errors import UserError
from mmlavit.models import LessAttention
from mmlavit.models.plain_vit import PlainLessAttention
from mmlavit.utils.local_files import write_file

from .attention import LayerAttention, measure_attention
from .curves import default_colours, draw_panels, main_keys, make_panel
from .diagonality import History, measure_diagonality, plot_diagonality
from .machine import device_name, software
from .maps_page import write_maps
from .pages import render
from .pyramid import observe_pyramid, plot_pyramid
from .runs import Run, each_checkpoint
from .saturation import plot_attention
from .shares import measure_shares, plot_shares
from .trained import Picture, read_pictures

T = TypeVar('T')


@dataclass(frozen=True)
class Source:
    """What a report is made of.

    Args:
        run (Run): The training.
        others (Sequence[Run]): Trainings to compare it with, such as that of the twin.
        paths (Sequence[Path]): Images to look at; at least one.
        folder (Path): Where the report goes.
    """

    run: Run
    others: Sequence[Run]
    paths: Sequence[Path]
    folder: Path

    @property
    def runs(self) -> list[Run]:
        """All trainings, that of the report first."""
        return [self.run, *self.others]

    @cached_property
    def names(self) -> list[str]:
        """What plots call the trainings: by their models, or by their folders if models have the same name."""
        return _names(self.runs)

    @cached_property
    def colours(self) -> list[str]:
        """Their colours, which are the same in all pictures, also where one is left out."""
        return default_colours(len(self.runs))

    @cached_property
    def pictures(self) -> list[Picture]:
        """The images as the model of the report gets them."""
        return list(read_pictures(self.run.trained, self.paths))


class Section(NamedTuple):
    """One section of a report.

    Args:
        text (Sequence[str]): Paragraphs.
        pictures (Sequence[str]): Files of pictures, in the folder of the report.
        pages (Sequence[str]): Files of pages, in the same folder.
        table (Sequence[Sequence[str]]): Rows, the header first.
    """

    text: Sequence[str]
    pictures: Sequence[str] = ()
    pages: Sequence[str] = ()
    table: Sequence[Sequence[str]] = ()


def write_report(source: Source, command: str, notify: Callable[[str], None] = lambda text: None) -> Path:
    """Write a report. A section that cannot be made says why.

    Args:
        source (Source): What it is made of.
        command (str): What makes it.
        notify (Callable): Called with the title of each section before it is made.

    Returns:
        Path: ``report.html`` in the folder of the source.

    Raises:
        UserError: If the folder cannot be written to.
    """
    source.folder.mkdir(parents=True, exist_ok=True)
    sections: dict[str, Section] = {}
    for title, make in SECTIONS.items():
        notify(title)
        try:
            sections[title] = make(source)
        except UserError as error:
            sections[title] = Section([f'Left out: {error}.'])
    trained = source.run.trained
    html = render(
        'report',
        name=trained.name,
        folder=source.run.folder,
        checkpoint=trained.checkpoint.name,
        others=[run.folder for run in source.others],
        images=[path.name for path in source.paths],
        conditions=_conditions(source),
        versions=software(),
        command=command,
        sections=sections,
    )
    write_file(source.folder / 'report.html', html.encode())
    return source.folder / 'report.html'


def _conditions(source: Source) -> str:
    device = str(next(source.run.trained.model.parameters()).device)
    threads = torch.get_num_threads()
    return f'{device_name(device)}, {threads} CPU thread{"s" if threads > 1 else ""}'


def _names(runs: Sequence[Run]) -> list[str]:
    """Name trainings for plots: by their models, or by their folders if models have the same name."""
    names = [run.trained.name for run in runs]
    if len(set(names)) == len(names):
        return names
    parts = [run.folder.resolve().parts for run in runs]
    while all(len(some) > 1 for some in parts) and len({some[-1] for some in parts}) == 1:
        parts = [some[:-1] for some in parts]
    while all(len(some) > 1 for some in parts) and len({some[0] for some in parts}) == 1:
        parts = [some[1:] for some in parts]
    return ['/'.join(some) for some in parts]


def _measure_each(source: Source, measure: Callable[[str, str, Run], T]) -> tuple[list[T], list[str]]:
    """Measure each training by its name and colour; of those it is compared with, say which cannot be measured."""
    found, left_out = [], []
    for name, colour, run in zip(source.names, source.colours, source.runs, strict=True):
        try:
            found.append(measure(name, colour, run))
        except UserError as error:
            if run is source.run:
                raise
            left_out.append(f'{name} is left out: {error}.')
    return found, left_out


def _training(source: Source) -> Section:
    logged = [
        (name, run.log, colour)
        for name, colour, run in zip(source.names, source.colours, source.runs, strict=True)
        if run.log
    ]
    if source.run.log is None:
        raise UserError(f'{source.run.folder} has no log of a training')
    names, logs, colours = zip(*logged, strict=True)
    keys = main_keys(logs)
    draw_panels([make_panel(key, names, logs, colours) for key in keys], source.folder / 'training.png')
    text = [f'Logged in {source.run.folder}: {", ".join(keys)}.']
    if not source.run.log.validated:
        text.append('The training was not validated, so there are no metrics.')
    return Section(text, ['training.png'])


def _saturation(source: Source) -> Section:
    def measure(name: str, colour: str, run: Run) -> tuple[str, list[LayerAttention], str]:
        pictures = read_pictures(run.trained, source.paths)
        return name, measure_attention(run.trained.model.backbone, (picture.inputs for picture in pictures)), colour

    models, left_out = _measure_each(source, measure)
    plot_attention([model[:2] for model in models], source.folder / 'saturation.png', [model[2] for model in models])
    text = [
        'How alike the attention of successive layers is: the motive of less attention is that full attention repeats '
        'itself. Means over images, heads and queries, on the reference keys of a LaViT.'
    ]
    if not source.others:
        text.append('Compare with the vanilla twin: --compare and the work dir of its training.')
    text += left_out
    header = ['layer', 'attention', 'similarity', 'alignment', 'distance', 'entropy', 'rank']
    rows = [
        [layer.name, 'less' if layer.less else 'vanilla', *('' if v is None else f'{v:.3f}' for v in layer[2:])]
        for layer in models[0][1]
    ]
    return Section(text, ['saturation.png'], table=[header, *rows])


def _maps(source: Source) -> Section:
    pages = []
    for i, picture in enumerate(source.pictures):
        pages.append(write_maps(source.run.trained, picture, source.folder / f'attention_{i}.png').name)
    text = [
        'Where the centre of an image looks, the mean over heads. The pages show every other point, and every head: '
        'click on the image there.'
    ]
    return Section(text, [Path(page).with_suffix('.png').name for page in pages], pages)


def _diagonality(source: Source) -> Section:
    def measure(name: str, colour: str, run: Run) -> History:
        backbone = run.trained.model.backbone
        measured = []
        if any(isinstance(module, (LessAttention, PlainLessAttention)) for module in backbone.modules()):
            pictures = list(read_pictures(run.trained, source.paths))
            inputs, sizes = [picture.inputs for picture in pictures], [picture.pixels.shape[:2] for picture in pictures]
            measured = [(step, measure_diagonality(backbone, inputs, sizes)) for step in each_checkpoint(run)]
        return History(name, run.log, run.diagonality_weight, measured, colour)

    histories, left_out = _measure_each(source, measure)
    histories = [history for history in histories if history.measured]
    if not histories:
        raise UserError('no model has less-attention layers and checkpoints')
    plot_diagonality(histories, source.folder / 'diagonality.png')
    text = [
        'The diagonality-preserving loss asks scores to be symmetric, with the largest at the query itself. Lines: '
        'what the training logged, on its batches; the loss is divided by its weight. Diamonds: measured on the images '
        'of this report, from each checkpoint that the work dir still has, also of trainings without the loss.',
        *left_out,
    ]
    return Section(text, ['diagonality.png'])


def _pyramid(source: Source) -> Section:
    images = [(picture, observe_pyramid(source.run.trained.model, picture)) for picture in source.pictures[:2]]
    if not any(pyramid for _, pyramid in images):
        raise UserError('the backbone gives no maps')
    plot_pyramid(images, source.run.trained.name, source.folder / 'pyramid.png')
    text = [
        'The first three principal components of each level, over its positions, as red, green and blue. Colours of '
        'different levels or images cannot be compared.'
    ]
    return Section(text, ['pyramid.png'])


def _cost(source: Source) -> Section:
    picture = source.pictures[0]
    shares = measure_shares(source.run.trained, picture)
    height, width = picture.whole
    conditions = f'one image of {height}x{width}, {_conditions(source)}'
    plot_shares(shares, conditions, source.folder / 'cost.png')
    totals = [sum(values) for values in zip(*(share[1:] for share in shares), strict=True)]
    header = ['', 'parameters', 'share', 'multiply-adds', 'share', 'time (ms)', 'share']
    rows = []
    for name, *values in [*shares, ('all', *totals)]:
        forms = f'{values[0]:,}', f'{values[1] / 1e6:,.1f} M', f'{values[2] * 1e3:.1f}'
        parts = (f'{value / total:.1%}' if total else '' for value, total in zip(values, totals, strict=True))
        rows.append([name, *(cell for pair in zip(forms, parts, strict=True) for cell in pair)])
    text = [
        f'A prediction on {conditions}. Times are medians of seven runs, each part without what runs inside of it; '
        'multiply-adds of the heads of a two-stage detector are those of the most regions that its test keeps.'
    ]
    return Section(text, ['cost.png'], table=[header, *rows])


SECTIONS: dict[str, Callable[[Source], Section]] = {
    'Training': _training,
    'Attention saturation': _saturation,
    'Attention maps': _maps,
    'Diagonality': _diagonality,
    'Feature pyramid': _pyramid,
    'Cost': _cost,
}
"""Sections of a report, by their titles."""
