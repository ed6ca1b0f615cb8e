"""HTML pages that load nothing: templates with their styles and scripts inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_FOLDER = Path(__file__).parent


def render(template: str, **values: Any) -> str:
    """Render a page; what is put into it is escaped.

    Args:
        template (str): Its template, without ``.html``. A style sheet and a script of this name are put into it.
        **values (Any): What the template has names for.

    Returns:
        str: The page.
    """
    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    styles, script = (
        ''.join(file.read_text(encoding='utf-8') for file in files if file.is_file())
        for files in ((_FOLDER / 'style.css', _FOLDER / f'{template}.css'), (_FOLDER / f'{template}.js',))
    )
    return environment.get_template(f'{template}.html').render(styles=Markup(styles), script=Markup(script), **values)
