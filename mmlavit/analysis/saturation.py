"""The plot of attention statistics: saturation, the similarity of successive layers, and what goes with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .attention import LayerAttention, place_of
from .curves import default_colours
from .figures import save_figure, write_legend

PANELS = {
    'similarity': 'cosine with the layer before',
    'alignment': 'centred kernel alignment\nwith the layer before',
    'distance': 'mean attention distance\n(sides of the image)',
    'entropy': 'entropy\n(1: uniform)',
    'rank': 'effective rank\n(share of the keys)',
}


def plot_attention(
    models: Sequence[tuple[str, Sequence[LayerAttention]]], path: Path, colours: Sequence[str] = ()
) -> None:
    """Draw statistics over layers, a panel each; less-attention layers are hollow, dotted lines separate stages.

    Args:
        models (Sequence[tuple[str, Sequence[LayerAttention]]]): Name and layers of each model.
        path (Path): Picture to write.
        colours (Sequence[str]): Colours of the models; by default the first of matplotlib's.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    colours = colours or default_colours(len(models))
    # Models of other depths have gaps: a layer stands where its stage and number are.
    places = sorted({place_of(layer.name) for _, layers in models for layer in layers})
    several = len({stage for stage, _ in places}) > 1
    names = [f'{stage}.{number}' if several else str(number) for stage, number in places]
    figure = Figure(figsize=(3.2 * len(PANELS), 3.6), layout='constrained')
    for axes, (field, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for color, (_, layers) in zip(colours, models, strict=True):
            values = [getattr(layer, field) for layer in layers]
            x = [places.index(place_of(layer.name)) for layer in layers]
            axes.plot(x, [float('nan') if v is None else v for v in values], color=color, lw=1)
            for j, layer, value in zip(x, layers, values, strict=True):
                if value is not None:
                    axes.plot(j, value, 'o', color=color, markerfacecolor='white' if layer.less else color)
        axes.set_title(label, fontsize=9)
        axes.set_xlabel('layer')
        axes.set_ylim(0, 1.03)
        axes.set_xlim(-0.5, len(places) - 0.5)
        axes.set_xticks(range(len(places)), names, fontsize=7)
        for j, (_, number) in enumerate(places):
            if number == 1 and j > 0:
                axes.axvline(j - 0.5, color='grey', lw=0.8, ls=':')
        axes.grid(axis='y', alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
    marks = [Line2D([], [], color=colour, label=name) for colour, (name, _) in zip(colours, models, strict=True)]
    marks += [
        Line2D([], [], color='grey', marker='o', ls='', label='vanilla layer'),
        Line2D([], [], color='grey', marker='o', ls='', markerfacecolor='white', label='less-attention layer'),
    ]
    place = dict(loc='outside lower center', ncols=len(marks))
    write_legend(figure, marks, [mark.get_label() for mark in marks], frameon=False, fontsize=9, **place)
    save_figure(figure, path)
