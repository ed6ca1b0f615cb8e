"""The plot of attention statistics: saturation, the similarity of successive layers, and what goes with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .attention import LayerAttention

PANELS = {
    'similarity': 'cosine with the layer before',
    'alignment': 'centred kernel alignment\nwith the layer before',
    'distance': 'mean attention distance\n(sides of the image)',
    'entropy': 'entropy\n(1: uniform)',
    'rank': 'effective rank\n(share of the keys)',
}


def plot_attention(models: Sequence[tuple[str, Sequence[LayerAttention]]], path: Path) -> None:
    """Draw statistics over layers, a panel each; less-attention layers are hollow, dotted lines separate stages.

    Args:
        models (Sequence[tuple[str, Sequence[LayerAttention]]]): Name and layers of each model.
        path (Path): Picture to write.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(3.2 * len(PANELS), 3.6), layout='constrained')
    for axes, (field, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for i, (_, layers) in enumerate(models):
            values = [getattr(layer, field) for layer in layers]
            color = f'C{i}'
            axes.plot(range(len(layers)), [float('nan') if v is None else v for v in values], color=color, lw=1)
            for j, (layer, value) in enumerate(zip(layers, values, strict=True)):
                if value is not None:
                    axes.plot(j, value, 'o', color=color, markerfacecolor='white' if layer.less else color)
        axes.set_title(label, fontsize=9)
        axes.set_xlabel('layer')
        axes.set_ylim(0, 1.03)
        longest = max((layers for _, layers in models), key=len)
        axes.set_xlim(-0.5, len(longest) - 0.5)
        axes.set_xticks(range(len(longest)), [_place(layer) for layer in longest], fontsize=7)
        for j in range(1, len(longest)):
            if _stage(longest[j]) != _stage(longest[j - 1]):
                axes.axvline(j - 0.5, color='grey', lw=0.8, ls=':')
        axes.grid(axis='y', alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
    marks = [Line2D([], [], color=f'C{i}', label=name) for i, (name, _) in enumerate(models)]
    marks += [
        Line2D([], [], color='grey', marker='o', ls='', label='vanilla layer'),
        Line2D([], [], color='grey', marker='o', ls='', markerfacecolor='white', label='less-attention layer'),
    ]
    figure.legend(handles=marks, loc='outside lower center', ncols=len(marks), frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _stage(layer: LayerAttention) -> str:
    """Number of the stage, from 1; '' in a plain transformer."""
    match = re.match(r'stages\.(\d+)\.', layer.name)
    return str(int(match[1]) + 1) if match else ''


def _place(layer: LayerAttention) -> str:
    """Stage and number in it, from 1, such as 3.2; of a plain transformer the number of the layer."""
    return '.'.join(filter(None, [_stage(layer), str(int(layer.name.rpartition('.')[2]) + 1)]))
