"""What all pictures of matplotlib need: a legend with names as they are, and a file that is whole or not there."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmlavit.utils.local_files import write_file

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def save_figure(figure: Figure, path: Path) -> None:
    """Save a figure as PNG.

    Args:
        figure (Figure): The figure.
        path (Path): Where; its folder is made.

    Raises:
        UserError: If it cannot be written. A file that was there before is as it was.
    """
    content = io.BytesIO()
    figure.savefig(content, dpi=120)
    write_file(path, content.getvalue())


def write_legend(owner: Axes | Figure, handles: Sequence[Artist], names: Sequence[str], **options: Any) -> None:
    """Write a legend with names as they are: matplotlib hides those with ``_`` first, and reads ``$`` as formulas.

    Args:
        owner (Axes or Figure): Whose legend it is.
        handles (Sequence[Artist]): What is explained.
        names (Sequence[str]): What each is called.
        **options (Any): As of matplotlib's ``legend``.
    """
    legend = owner.legend(handles, [f' {name}' if name.startswith('_') else name for name in names], **options)
    for text in legend.get_texts():
        text.set_parse_math(False)
