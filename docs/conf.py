"""Sphinx configuration: `python -m sphinx -W --keep-going -b html docs docs/_build/html`.

Pages are Markdown that also reads well on GitHub, with relative links to files of the repository. The README, the notes
for contributors and the configs' pages live outside this folder; they are mirrored into docs/repository, and links are
turned to where their targets are in the rendered pages.
"""

import os
import re
import runpy
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
MIRROR = DOCS / 'repository'
MIRRORED = (
    'README.md',
    'CONTRIBUTING.md',
    'CHANGELOG.md',
    'configs/README.md',
    'configs/experiments/README.md',
    'configs/zoo/*.md',
    'weights/README.md',
)

project = 'mmlavit'
copyright = 'the authors of mmlavit, Apache-2.0'
version = release = runpy.run_path(str(ROOT / 'mmlavit' / 'version.py'))['__version__']

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.mathjax',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
    'sphinx_copybutton',
]
exclude_patterns = ['_build', 'figures', 'images']

# Markdown as GitHub has it: formulas, anchors of headings.
myst_enable_extensions = ['dollarmath']
myst_fence_as_directive = ['math']
myst_heading_anchors = 4

# Broken references are errors. Other projects' objects are not looked up: docs also build without a network.
nitpicky = True
nitpick_ignore_regex = [
    (r'py:class', r'os\.PathLike'),
    ('py:.*', r'(torch|nn|mmengine|mmcv|numpy|np|collections|typing|pathlib|argparse|abc)\..*'),
    ('py:.*', r'(Tensor|Module|BaseModule|Hook|Path|Sequence|Mapping|Callable|NamedTuple|optional)'),
    ('py:.*', r'(AnyScores|Config|Grid|ScoreObserver|Scores)'),
]

autodoc_member_order = 'bysource'
autodoc_typehints_format = 'short'
autodoc_default_options = {'members': True, 'show-inheritance': True}
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False

html_theme = 'furo'
html_title = f'mmlavit {version}'
html_static_path = ['_static']
html_css_files = ['style.css']
html_show_sphinx = False
html_copy_source = False

# A fenced block, which stays as it is, or a link.
LINK = re.compile(
    r'^(?P<fence>```+).*?^(?P=fence)$|\[(?P<text>[^\]\[]*)\]\((?P<target>[^)\s]+)\)', re.DOTALL | re.MULTILINE
)


def mirror() -> dict[Path, Path]:
    """Copy the documents from outside; return for each its page in docs."""
    pages = {}
    for pattern in MIRRORED:
        for document in sorted(ROOT.glob(pattern)):
            page = MIRROR / document.relative_to(ROOT)
            page.parent.mkdir(parents=True, exist_ok=True)
            content = document.read_bytes()
            if not page.exists() or page.read_bytes() != content:  # unchanged pages are not built again
                page.write_bytes(content)
            pages[document] = page
    for page in MIRROR.rglob('*.md'):
        if page not in pages.values():
            page.unlink()
    return pages


def prepare(app, docname: str, source: list[str]) -> None:
    """Turn relative links of a document to where their targets are: pages, or files to download."""
    page = DOCS / f'{docname}.md'
    document = next((original for original, copy in PAGES.items() if copy == page), page)

    def turn(match: re.Match) -> str:
        text, (path, mark, anchor) = match['text'], (match['target'] or '').partition('#')
        if not path or re.match(r'\w{2,}:', path):  # a block, a link in this page, or to another site
            return match[0]
        target = (document.parent / path).resolve()
        if target.is_dir() and not (target := target / 'README.md').is_file():
            return text  # a folder is not a page
        return f'[{text}]({os.path.relpath(PAGES.get(target, target), page.parent)}{mark}{anchor})'

    source[0] = LINK.sub(turn, source[0])
    if docname.startswith(('benchmarks/', 'experiments/')):  # reports, reached from the pages that sum them up
        source[0] = f'---\norphan: true\n---\n\n{source[0]}'


PAGES = mirror()


def setup(app) -> None:
    """Register the hook."""
    app.connect('source-read', prepare)
