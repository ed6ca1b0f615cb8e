"""The Markdown documents, their code blocks and the shell commands in them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    path
    for pattern in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'docs/**/*.md', 'configs/**/*.md')
    for path in ROOT.glob(pattern)
    # What docs/conf.py and Sphinx write.
    if not path.is_relative_to(ROOT / 'docs/repository') and not path.is_relative_to(ROOT / 'docs/_build')
)

FENCE = re.compile(r'^(```+|~~~+)(\S*)[^\n]*\n(.*?)^\1\s*$', re.MULTILINE | re.DOTALL)
SHELL = {'bash', 'sh', 'shell', 'console'}
# Commands in running text and in blocks that are only indented.
INLINE = re.compile(r'(?<!`)`((?:python|make|pip|tools/\S+\.sh) [^`]+)`(?!`)')
INDENTED = re.compile(r'^ {4}((?:python|make|pip|tools/\S+\.sh) .+)$', re.MULTILINE)


def name(path: Path) -> str:
    """Path below the root, for messages."""
    return str(path.relative_to(ROOT))


def code_blocks(document: Path, *languages: str) -> list[str]:
    """Contents of a document's fenced blocks in one of the languages."""
    return [match[3] for match in FENCE.finditer(document.read_text(encoding='utf-8')) if match[2] in languages]


def example_files(document: Path) -> dict[str, str]:
    """Python blocks that are files: their first line is a comment with the path."""
    blocks = ((re.match(r'# (\S+\.py)\n', block), block) for block in code_blocks(document, 'python'))
    return {match[1]: block for match, block in blocks if match}


def commands(document: Path) -> list[list[str]]:
    """Words of each simple shell command in a document, without variables set for it and redirections."""
    text = document.read_text(encoding='utf-8')
    scripts = code_blocks(document, *SHELL)
    text = FENCE.sub('', text)
    scripts += INDENTED.findall(text) + INLINE.findall(text)
    return [command for script in scripts for command in split(script)]


def split(script: str) -> list[list[str]]:
    """Split a shell script into simple commands; substitutions `NAME=$(...)` are left out."""
    found = []
    for line in script.replace('\\\n', ' ').splitlines():
        if re.match(r'\s*\w+=\$\(', line):
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars='&;|')
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ';']:
            if set(word) <= set('&;|'):
                if command:
                    found.append(command)
                command = []
            elif command or not re.match(r'\w+=', word):
                command.append(word)
    return [command[: next((i for i, word in enumerate(command) if '>' in word), None)] for command in found]
