"""The documents are checked against the tree: links, paths, commands and stated versions."""

import json
import re
import subprocess
import sys

import pytest
from documents import DOCUMENTS, FENCE, ROOT, example_files, name

from mmlavit import __version__

PYTHON_TOOLS = sorted(path for path in (ROOT / 'tools').rglob('*.py') if '__main__' in path.read_text())
SHELL_TOOLS = sorted((ROOT / 'tools').rglob('*.sh'))

LINK = re.compile(r'!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)|<img[^>]+src=["\']([^"\']+)["\']')
# A path as users type it. What has a placeholder or a wildcard in it names no single file.
MENTIONED = re.compile(r'(?<![\w/.-])((?:configs|tools|mmlavit|requirements|tests)/[\w./*{},<>$-]*)')


def slugs(document):
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r'^#+\s+(.+?)\s*$', document.read_text(encoding='utf-8'), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', h.lower()).replace(' ', '-') for h in headings}


def test_required_documents_exist():
    assert {'README.md', 'CONTRIBUTING.md', 'CHANGELOG.md'} <= {name(path) for path in DOCUMENTS}


@pytest.mark.parametrize('document', DOCUMENTS, ids=name)
def test_links(document):
    broken = []
    for match in LINK.finditer(FENCE.sub('', document.read_text(encoding='utf-8'))):
        target = match.group(1) or match.group(2)
        if re.match(r'\w{2,}:', target):  # another site
            continue
        path, _, anchor = target.partition('#')
        linked = (document.parent / path).resolve() if path else document
        if not linked.exists() or (anchor and linked.suffix == '.md' and anchor not in slugs(linked)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize('document', DOCUMENTS, ids=name)
def test_mentioned_paths(document):
    paths = {m.rstrip('.,') for m in MENTIONED.findall(document.read_text(encoding='utf-8'))}
    missing = {p for p in paths if not re.search(r'[*{}<>$]', p) and not (ROOT / p).exists()}
    assert not missing - set(example_files(document))


@pytest.mark.parametrize('document', DOCUMENTS, ids=name)
def test_make_targets(document):
    targets = re.findall(r'^([a-z]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
    # Only in code: prose also makes sense.
    code = re.findall(r'`+[^`]+`+', document.read_text(encoding='utf-8'))
    asked = {target for text in code for target in re.findall(r'\bmake ([a-z]+)', text)}
    assert asked <= set(targets)


def test_python_tools_answer_help():
    """In one process: most of the time goes into importing torch."""
    code = (
        'import runpy, sys\n'
        'for tool in sys.argv[1:]:\n'
        '    sys.argv = [tool, "--help"]\n'
        '    try:\n'
        '        runpy.run_path(tool, run_name="__main__")\n'
        '    except SystemExit as end:\n'
        '        if end.code:\n'
        '            sys.exit(f"{tool} --help ends with {end.code}")\n'
        '    else:\n'
        '        sys.exit(f"{tool} does not know --help")\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', code, *map(str, PYTHON_TOOLS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for tool in PYTHON_TOOLS:
        assert f'usage: {tool.name}' in done.stdout


@pytest.mark.parametrize('tool', SHELL_TOOLS, ids=name)
def test_shell_tool_parses(tool):
    subprocess.run(['bash', '-n', tool], check=True)
    assert tool.stat().st_mode & 0o111, 'not executable'


@pytest.mark.parametrize('file', ['mminstall.txt', 'openmmlab.txt'])
def test_versions_on_the_page_are_the_pinned_ones(file):
    """The page installs the file, and its table names the packages with their versions."""
    page = (ROOT / 'docs/get_started.md').read_text()
    assert f'pip install -r requirements/{file} -e .' in page
    lines = (ROOT / 'requirements' / file).read_text().splitlines()
    pins = [line.split('==') for line in lines if re.match('(onedl-)?mm', line)]
    assert len(pins) == 5
    assert [pin for pin in pins if f'| {" ".join(pin)} |' not in page] == []


def test_figures_are_those_of_the_script(tmp_path):
    """Drawn anew, the pictures of the method have the same shapes and texts; fonts may differ in a coordinate."""
    script = ROOT / 'docs/figures/stage.py'
    subprocess.run([sys.executable, script, '--out-dir', tmp_path], check=True, cwd=ROOT)
    for figure in ('stage.svg', 'stages.svg'):
        drawn, kept = ((folder / figure).read_text() for folder in (tmp_path, ROOT / 'docs/images'))
        for tag in ('<g id="patch', '<g id="text', '<!-- '):
            assert drawn.count(tag) == kept.count(tag) > 0
        assert re.findall('<!-- (.*?) -->', drawn) == re.findall('<!-- (.*?) -->', kept)


def cost_tables(document):
    """Yield header and rows of each table whose columns are linked to reports of benchmarks."""
    for table in re.findall(r'(?:^\|.*\|\n)+', document.read_text(encoding='utf-8'), re.MULTILINE):
        header, _, *rows = ([cell.strip() for cell in line[1:-1].split('|')] for line in table.splitlines())
        if any('report.md)' in cell for cell in header[1:]):
            yield header, rows


@pytest.mark.parametrize('document', ['README.md', 'docs/benchmarks.md'])
def test_costs_are_those_of_the_reports(document):
    """Each column has what its report measured: times and memory of LaViT-S, multiples of these for the others."""
    ((header, rows),) = cost_tables(ROOT / document)
    for column, cell in enumerate(header[1:], 1):
        folder = re.search(r'benchmarks/(\w+)/report\.md', cell)[1]
        report = json.loads((ROOT / 'docs/benchmarks' / folder / 'report.json').read_text())
        measured = {}
        for result in report['comparisons'][0]['results']:
            ratios = result['ratios']
            measured[result['title']] = f'{ratios["time"]:.2f} ({ratios["memory"]:.2f})'
            if result['backbone'] == report['reference']:
                measured[result['title']] = f'{result["median_s"] * 1000:.0f} ms ({result["memory_mb"]:.0f} MB)'
        shown = {row[0]: row[column] for row in rows if row[column]}
        assert shown and shown == {title: measured[title] for title in shown}, cell
        assert shown.keys() == measured.keys() & {row[0] for row in rows}, 'a row was left out'


def test_version_has_a_changelog_entry():
    changelog = (ROOT / 'CHANGELOG.md').read_text()
    assert re.search(rf'^## {re.escape(__version__)} ', changelog, re.MULTILINE)


def test_ruff_has_one_version():
    pinned = re.search(r'^ruff==(.+)$', (ROOT / 'requirements/tests.txt').read_text(), re.M)
    hook = re.search(r'ruff-pre-commit\s+rev: v(\S+)', (ROOT / '.pre-commit-config.yaml').read_text())
    assert pinned.group(1) == hook.group(1)
