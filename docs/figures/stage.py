"""Draw the two figures of docs/method.md: the four stages, and what happens inside one.

python docs/figures/stage.py

writes docs/images/stages.svg and docs/images/stage.svg. Numbers come from the architecture table of the package.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from mmlavit.models.arch import ARCH_ZOO, STRIDES

IMAGES = Path(__file__).resolve().parents[1] / 'images'

INK, MUTED, LINE = '#1f2933', '#5b6770', '#9aa5b1'
VANILLA, VANILLA_FILL = '#2f6db5', '#e3eefa'
LESS, LESS_FILL = '#c96a12', '#fdeedd'
RESIDUAL, RESIDUAL_FILL = '#2d8659', '#e2f3ea'
PLAIN_FILL = '#f1f3f5'

STYLE = {
    'font.family': 'DejaVu Sans',
    'mathtext.fontset': 'dejavusans',
    'svg.hashsalt': 'mmlavit',  # the same file from the same drawing
}


def box(ax: Axes, x: float, y: float, width: float, height: float, text: str, edge: str, fill: str, size: float = 10):
    """Draw a rounded box with centred text; (x, y) is its lower left corner."""
    shape = 'round,pad=0,rounding_size=0.7'
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, ec=edge, fc=fill, lw=1.3, zorder=3))
    ax.text(x + width / 2, y + height / 2, text, ha='center', va='center', size=size, color=INK, zorder=4)


def arrow(ax: Axes, points: list[tuple[float, float]], color: str = INK, width: float = 1.4, head: bool = True):
    """Draw a line through the points, with an arrow head at its end."""
    for start, end in zip(points[:-2], points[1:-1], strict=True):
        ax.plot(*zip(start, end, strict=True), color=color, lw=width, solid_capstyle='round', zorder=2)
    style = '-|>' if head else '-'
    line = FancyArrowPatch(
        points[-2],
        points[-1],
        arrowstyle=style,
        mutation_scale=11,
        color=color,
        lw=width,
        shrinkA=0,
        shrinkB=0,
        zorder=2,
    )
    ax.add_patch(line)


def label(ax: Axes, x: float, y: float, text: str, color: str = MUTED, size: float = 9, **kwargs):
    """Write a note."""
    ax.text(x, y, text, **{'ha': 'center', 'va': 'center', 'color': color, 'size': size, 'zorder': 5, **kwargs})


def canvas(width: float, height: float, inches: float) -> tuple[plt.Figure, Axes]:
    """Make a figure of drawing units."""
    figure = plt.figure(figsize=(inches, inches * height / width))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis('off')
    return figure, ax


def draw_stages() -> plt.Figure:
    """Draw the four stages of LaViT-S with their layers and what passes between them."""
    arch = ARCH_ZOO['small']
    tile, gap, margin, between = 3.6, 0.8, 1.0, 3.4
    figure, ax = canvas(127, 32.5, 9)
    y, bottom = 15.5, 6.4
    label(ax, margin + 2.2, y + tile / 2, 'image', INK, 9.5)
    x, previous = 10.0, None
    for i, (depth, vanilla) in enumerate(zip(arch.depths, arch.num_va_layers, strict=True)):
        inner = depth * (tile + gap) - gap
        width = inner + 9.2
        frame(ax, x, y - 2.4, width, tile + 4.8, LINE)
        arrow(ax, [(x - between, y + tile / 2), (x, y + tile / 2)])
        box(ax, x + 1.3, y - 1.1, 5.4, tile + 2.2, 'patch\nembed', LINE, PLAIN_FILL, 6.8)
        left = x + 7.7
        for j in range(depth):
            edge, fill, name = (VANILLA, VANILLA_FILL, 'V') if j < vanilla else (LESS, LESS_FILL, 'L')
            box(ax, left + j * (tile + gap), y, tile, tile, name, edge, fill, 10)
        first, last = left + tile / 2, left + inner - tile / 2
        if previous is not None:
            top = y + tile + 4.4
            arrow(ax, [(previous, y + tile), (previous, top), (first, top), (first, y + tile)], RESIDUAL, 1.6)
            label(ax, (previous + first) / 2, top + 1.4, 'AR', RESIDUAL, 9.5, weight='bold')
        middle = x + width / 2
        label(ax, middle, y - 4.2, f'stage {i + 1}: stride {STRIDES[i]}, {arch.embed_dims[i]} channels', MUTED, 7.8)
        arrow(ax, [(middle, y - 5.6), (middle, bottom)])
        previous, x = last, x + width + between
    end = x - between
    box(ax, 10, bottom - 4.4, end - 10, 4.4, 'feature maps for RetinaNet, Mask R-CNN, UperNet, Semantic FPN, ...'
        ' or a classifier (the last one)', LINE, PLAIN_FILL, 9)  # fmt: skip
    for left, edge, fill, name, text in (
        (10, VANILLA, VANILLA_FILL, 'V', 'vanilla attention: computes scores'),
        (48, LESS, LESS_FILL, 'L', 'less attention: transforms the scores before it'),
    ):
        box(ax, left, 28.4, 2.6, 2.6, name, edge, fill, 8)
        label(ax, left + 3.6, 29.7, text, INK, 9, ha='left')
    label(ax, 95.5, 29.7, 'AR', RESIDUAL, 9.5, ha='left', weight='bold')
    label(ax, 99, 29.7, 'attention residual', INK, 9, ha='left')
    return figure


def draw_stage() -> plt.Figure:
    """Draw one vanilla and two less-attention layers, the flow of tokens and the flow of scores."""
    figure, ax = canvas(143, 56, 9.6)
    tokens, mix, scores, residual = 9.5, 24.5, 38.0, 49.5  # heights of the rows

    label(ax, 5.6, tokens, 'map of\nstage $m-1$', INK, 8.5)
    arrow(ax, [(11, tokens), (13, tokens)])
    box(ax, 13, tokens - 4, 10.5, 8, 'patch\nembedding', LINE, PLAIN_FILL, 7.6)

    # The vanilla layer.
    left = 26
    panel(ax, left, 42, 'vanilla layer', VANILLA, tokens, scores)
    arrow(ax, [(23.5, tokens), (left + 33, tokens)])
    arrow(ax, [(left + 5, tokens), (left + 5, scores - 3.5)], VANILLA)
    label(ax, left + 3.9, mix, '$Q$', VANILLA, 12, ha='right')
    box(ax, left + 9, tokens + 5, 11, 5.6, 'reduce to\nstride 32', VANILLA, 'white', 7.8)
    arrow(ax, [(left + 14.5, tokens), (left + 14.5, tokens + 5)], VANILLA)
    arrow(ax, [(left + 12, tokens + 10.6), (left + 12, scores - 3.5)], VANILLA)
    label(ax, left + 10.9, mix, '$K$', VANILLA, 12, ha='right')
    arrow(ax, [(left + 17, tokens + 10.6), (left + 17, mix), (left + 20.5, mix)], VANILLA)
    label(ax, left + 18, mix - 2.6, '$V$', VANILLA, 12, ha='left')
    box(ax, left + 2, scores - 3.5, 26, 7, r'$A_1 = Q K^{\top} / \sqrt{d} + E$', VANILLA, VANILLA_FILL, 12)
    mixing(ax, left + 20.5, mix, tokens, scores, '$A_1$', VANILLA, VANILLA_FILL, left + 26.5)
    feed_forward(ax, left + 33, tokens)
    label(ax, left + 35.2, scores + 2.1, 'kept:', LESS, 8.5)
    label(ax, left + 35.2, scores - 2.3, '$N$ × 49', LESS, 8.5)

    # Two less-attention layers.
    source = left + 28
    for number, left in ((2, 71), (3, 102)):
        panel(ax, left, 28, 'less-attention layer', LESS, tokens, scores)
        arrow(ax, [(source, scores), (left + 4, scores)], LESS, 2.6)
        text = rf'$A_{number} = \Psi\, A_{number - 1}\, \Theta^{{\top}}$'
        box(ax, left + 4, scores - 3.5, 20, 7, text, LESS, LESS_FILL, 12)
        arrow(ax, [(left - 4.5, tokens), (left + 19, tokens)])
        box(ax, left + 1.3, tokens + 5, 11.4, 5.6, 'reduce to\n7×7', LESS, 'white', 7.8)
        arrow(ax, [(left + 7, tokens), (left + 7, tokens + 5)], LESS)
        arrow(ax, [(left + 4.2, tokens + 10.6), (left + 4.2, mix), (left + 8, mix)], LESS)
        label(ax, left + 5.2, mix - 2.6, '$V$', LESS, 12, ha='left')
        mixing(ax, left + 8, mix, tokens, scores, f'$A_{number}$', LESS, LESS_FILL, left + 14)
        feed_forward(ax, left + 19, tokens)
        source = left + 24
    arrow(ax, [(102 + 26.5, tokens), (102 + 31.5, tokens)])
    label(ax, 138.2, tokens, 'map of\nstage $m$', INK, 8.5)

    # Residuals of attention, from the stage before and to the stage after.
    for middle in (26 + 15, 102 + 14):
        text = 'AR: convolution 2×2, norm,\nmix heads, LayerScale'
        box(ax, middle - 12.5, residual - 3.3, 25, 6.6, text, RESIDUAL, RESIDUAL_FILL, 8)
    label(ax, 15, residual, 'last scores of\nstage $m-1$', INK, 8.5)
    arrow(ax, [(21.5, residual), (28.5, residual)], RESIDUAL)
    arrow(ax, [(41, residual - 3.3), (41, scores + 3.5)], RESIDUAL)
    label(ax, 42, scores + 6.9, '$E$ (first layer of the stage only)', RESIDUAL, 8.5, ha='left')
    arrow(ax, [(116, scores + 3.5), (116, residual - 3.3)], RESIDUAL)
    arrow(ax, [(128.5, residual), (132.5, residual)], RESIDUAL)
    label(ax, 137.6, residual, '$E$ of\nstage $m+1$', INK, 8.5)
    return figure


def frame(ax: Axes, x: float, y: float, width: float, height: float, color: str, **kwargs):
    """Draw an empty rounded frame."""
    shape = 'round,pad=0,rounding_size=1'
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, ec=color, fc='none', lw=1.1, zorder=1, **kwargs))


def panel(ax: Axes, x: float, width: float, title: str, color: str, tokens: float, scores: float):
    """Frame one layer."""
    frame(ax, x, tokens - 5.4, width, scores - tokens + 10.6, color, linestyle=(0, (4, 3)))
    label(ax, x + width / 2, tokens - 7.2, title, color, 9.5, weight='bold')


def mixing(
    ax: Axes, x: float, mix: float, tokens: float, scores: float, name: str, edge: str, fill: str, middle: float
):
    """Draw softmax(A) V between the row of scores and the row of tokens."""
    box(ax, x, mix - 3.2, 13.4, 6.4, rf'softmax({name}) $V$', edge, fill, 7.9)
    arrow(ax, [(middle, scores - 3.5), (middle, mix + 3.2)], edge)
    arrow(ax, [(middle, mix - 3.2), (middle, tokens + 1.4)], edge)
    plus(ax, middle, tokens)


def plus(ax: Axes, x: float, y: float):
    """Draw the addition of a residual branch."""
    ax.add_patch(plt.Circle((x, y), 1.4, ec=INK, fc='white', lw=1.2, zorder=4))
    label(ax, x, y, '+', INK, 10)


def feed_forward(ax: Axes, x: float, y: float):
    """Draw the feed-forward of a layer."""
    box(ax, x, y - 4, 7.5, 8, 'feed-\nforward', LINE, PLAIN_FILL, 7.6)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Draw the figures of docs/method.md.')
    parser.add_argument('--out-dir', type=Path, default=IMAGES, help='where the images go; default: docs/images')
    parser.add_argument('--format', choices=['svg', 'png'], default='svg', help='default: svg')
    return parser.parse_args()


def main() -> None:
    """Draw and save."""
    args = parse_args()
    args.out_dir.mkdir(parents=True, exist_ok=True)
    metadata = {'Date': None} if args.format == 'svg' else None
    with plt.rc_context(STYLE):
        for name, draw in (('stages', draw_stages), ('stage', draw_stage)):
            figure = draw()
            figure.savefig(args.out_dir / f'{name}.{args.format}', dpi=160, metadata=metadata, facecolor='white')
            plt.close(figure)


if __name__ == '__main__':
    main()
