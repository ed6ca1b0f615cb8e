"""The documents are rendered without a warning, and every link in the pages leads somewhere."""

import re
import subprocess
import sys
from urllib.parse import unquote

import pytest
from documents import DOCUMENTS, ROOT


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp('site')
    command = [
        '-m',
        'sphinx',
        '-W',
        '--keep-going',
        '-q',
        '-b',
        'html',
        '-d',
        folder / 'doctrees',
        'docs',
        folder / 'html',
    ]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / 'html'


def test_every_document_is_a_page(site):
    for document in DOCUMENTS:
        path = document.relative_to(ROOT / 'docs' if document.is_relative_to(ROOT / 'docs') else ROOT)
        page = path if document.is_relative_to(ROOT / 'docs') else 'repository' / path
        assert (site / page).with_suffix('.html').is_file()


def test_links_between_pages(site):
    pages = {page: page.read_text(encoding='utf-8') for page in site.rglob('*.html')}
    del pages[site / '_modules/index.html']  # lists builtins, of which Sphinx has no source to show
    broken, links = [], 0
    for page, text in pages.items():
        for link in re.findall(r'(?:href|src)="([^"]+)"', text):
            if re.match(r'\w{2,}:|#$', link):
                continue
            path, _, anchor = unquote(link.split('?')[0]).partition('#')
            target = (page.parent / path).resolve() if path else page
            links += 1
            if not target.exists() or (anchor and target in pages and f'id="{anchor}"' not in pages[target]):
                broken.append(f'{page.relative_to(site)}: {link}')
    assert not broken
    assert links > 100
