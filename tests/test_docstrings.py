"""What ruff does not check of docstrings: every argument, and what is returned, has its type before its meaning."""

import ast
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [str(path.relative_to(ROOT)) for room in ('mmlavit', 'ops', 'tools') for path in (ROOT / room).rglob('*.py')]


def untyped(docstring: str) -> list[str]:
    """The entries of the sections of a docstring that lack their type."""
    found = []
    sections = re.findall(r'^(Args|Returns|Yields):\n((?: {4}.*\n?|\n)+)', docstring, re.MULTILINE)
    for name, section in sections:
        entries = re.findall(r'^ {4}(?! )(.*)', section, re.MULTILINE)
        pattern = r'\*{0,2}\w+ \(.+?\): ' if name == 'Args' else r'[\w\[\], .|]+: '
        # Only the first line of what is returned has it.
        found += [entry for entry in (entries if name == 'Args' else entries[:1]) if not re.match(pattern, entry)]
    return found


@pytest.mark.parametrize('file', FILES)
def test_types(file):
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            assert untyped(ast.get_docstring(node) or '') == [], node.name


def test_what_the_check_finds():
    docstring = """Do something.

    Args:
        a (int, optional): Number.
            It goes on here.
        b: Nothing.
        *args (str): Words.

    Returns:
        dict[str, int | None]: Numbers,
        by name.

    Yields:
        The number.
    """
    assert untyped(inspect.cleandoc(docstring)) == ['b: Nothing.', 'The number.']
