"""The documents are rendered without a warning, and every link in the pages leads somewhere."""

import re
import runpy
import subprocess
import sys
from urllib.parse import unquote

from documents import DOCUMENTS, ROOT


def test_pages_and_their_links(tmp_path):
    """In one test, since rendering takes half a minute; without the pages of source code, which have no links."""
    names = runpy.run_path(str(ROOT / 'docs/conf.py'))['extensions']
    extensions = ','.join(name for name in names if name != 'sphinx.ext.viewcode')
    site = tmp_path / 'html'
    command = ['-m', 'sphinx', '-W', '--keep-going', '-q', '-b', 'html', '-D', f'extensions={extensions}']
    command += ['-d', tmp_path / 'doctrees', 'docs', site]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for document in DOCUMENTS:
        path = document.relative_to(ROOT / 'docs' if document.is_relative_to(ROOT / 'docs') else ROOT)
        page = path if document.is_relative_to(ROOT / 'docs') else 'repository' / path
        assert (site / page).with_suffix('.html').is_file()
    pages = {page: page.read_text(encoding='utf-8') for page in site.rglob('*.html')}
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
