"""Attention maps, and the page that shows them, against the literal network; in a browser where there is one."""

import base64
import json
import re
import shutil
import zlib
from html.parser import HTMLParser
from pathlib import Path

import cv2
import literal
import numpy as np
import pytest
import torch
from matplotlib import colormaps
from mmengine.registry import MODELS
from small_vit import VIT

from mmlavit import LaViT
from mmlavit.analysis.maps import find_cell, observe_maps, plot_maps
from mmlavit.analysis.maps_page import _find_multiple, make_page, make_payload
from mmlavit.analysis.trained import Picture
from mmlavit.utils.toolbox import load_toolbox

SIZE = (96, 160)  # 3 x 5 keys, which nano averages or enlarges to 4 x 4 reference keys
ABOUT = dict(model='a model', checkpoint='last.pth', image='</script>.png', size=(150, 96), point=(0.3, 0.6))


@pytest.fixture(scope='module')
def backbone():
    torch.manual_seed(0)
    model = LaViT('nano', num_va_layers=(2, 1, 2, 1), drop_path_rate=0.0).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope='module')
def inputs():
    return torch.randn(1, 3, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope='module')
def expected(backbone, inputs):
    """Every attention matrix (N, keys) that the literal network softmaxes, in its order: by layer and head."""
    seen, softmax = [], torch.softmax

    def record(*args, **kwargs):
        seen.append(softmax(*args, **kwargs))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch, 'softmax', record)
        literal.backbone(backbone, inputs)
    return [matrix.numpy() for matrix in seen]


@pytest.fixture(scope='module')
def page(backbone, inputs):
    frame = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    return make_page(observe_maps(backbone, inputs), frame, ABOUT)


def test_maps_are_those_of_the_literal_network(backbone, inputs, expected):
    with torch.no_grad():
        before = backbone(inputs)
    layers = observe_maps(backbone, inputs)
    with torch.no_grad():
        after = backbone(inputs)
    assert all(torch.equal(a, b) for a, b in zip(before, after))  # nothing is left behind
    maps = [attention.numpy() for layer in layers for attention in layer.attention]
    assert len(maps) == len(expected)
    for found, wanted in zip(maps, expected):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert [layer.less for layer in layers] == [False, False, False, True, False, False, True, False, True]
    assert {(layer.less, layer.key_grid) for layer in layers} == {(False, (3, 5)), (True, (4, 4))}


def test_pooled_keys(inputs):
    """Where all layers read the reference keys, less attention passes on what the layer before shows."""
    model = LaViT('nano', key_reduction='pool').double().eval()
    for name, parameter in model.named_parameters():
        if 'delta' in name:
            parameter.data.zero_()
    layers = observe_maps(model, inputs)
    assert {layer.key_grid for layer in layers} == {(4, 4)}
    torch.testing.assert_close(layers[3].attention, layers[2].attention)


def unpack(text, dtype):
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)


def read_payload(page):
    """Maps of a page as floats: for each layer an array (heads, queries, keys)."""
    values, maxima = unpack(page['values'], np.uint8), unpack(page['maxima'], '<u2')
    maps = []
    for layer in page['layers']:
        n, k = np.prod(layer['queries']), np.prod(layer['keys'])
        shares = values[layer['first_value'] :][: layer['heads'] * n * k].reshape(layer['heads'], n, k) / 255
        maps.append(shares * maxima[layer['first_map'] :][: layer['heads'] * n].reshape(-1, n, 1) / 65535)
    return maps


class Collector(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.open, self.texts = [], [], {}

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag in ('script', 'style', 'section', 'main', 'select', 'details', 'noscript'):
            self.open.append((tag, attrs.get('id')))

    def handle_endtag(self, tag):
        if self.open and self.open[-1][0] == tag:
            self.open.pop()

    def handle_data(self, data):
        if self.open:
            key = self.open[-1]
            self.texts[key] = self.texts.get(key, '') + data


def parse(page):
    collector = Collector()
    collector.feed(page)
    assert collector.open == []
    return collector


def test_page_has_the_numbers(page, expected):
    payload = json.loads(parse(page).texts['script', 'page'])
    maps = [attention for layer in read_payload(payload) for attention in layer]
    assert len(maps) == len(expected)
    for found, wanted in zip(maps, expected):
        assert (np.abs(found - wanted) <= wanted.max(-1, keepdims=True) / 255 + 1 / 65535).all()
    assert [layer['stage'] for layer in payload['layers']] == [1, 1, 2, 2, 3, 3, 3, 4, 4]
    image = cv2.imdecode(np.frombuffer(base64.b64decode(payload['src'].partition(',')[2]), np.uint8), 1)
    assert image.shape == (*SIZE, 3) and payload['frame'] == [160, 96]


def test_page_loads_nothing_and_is_complete(page):
    parsed = parse(page)
    for tag, attrs in parsed.tags:
        for name in ('src', 'href', 'srcset', 'action'):
            assert attrs.get(name, 'data:').startswith('data:'), (tag, attrs)
    text = re.sub(r'<script id="page".*?</script>', '', page, flags=re.DOTALL)  # base64 may have any letters
    assert not re.search(r'https?:|@import|url\(|import\(|fetch\(|XMLHttpRequest', text)
    assert 'prefers-color-scheme: dark' in text
    ids = {attrs['id'] for _, attrs in parsed.tags if 'id' in attrs}
    asked_for = set(re.findall(r"byId\('([\w-]+)'\)", page))
    assert asked_for <= ids
    assert '&lt;/script&gt;.png' in page and page.count('</script>') == 2  # names are escaped
    assert '6 vanilla layers, 3 less-attention layers' in page


def test_a_large_payload_averages_queries(backbone, inputs):
    layers = observe_maps(backbone, inputs)
    whole, small = make_payload(layers), make_payload(layers, budget=40_000)
    assert len(unpack(small['values'], np.uint8)) <= 40_000 < len(unpack(whole['values'], np.uint8))
    first = small['layers'][0]
    assert first['grid'] == (24, 40) and max(first['queries']) < 24
    side = first['queries']
    by_hand = literal.grid_matrix((24, 40), side).numpy() @ read_payload(whole)[0][0]
    np.testing.assert_allclose(read_payload(small)[0][0], by_hand, atol=2e-3)


def test_extra_tokens_are_left_out():
    load_toolbox('mmpretrain')
    vit = MODELS.build(VIT)
    vit.eval()  # mmpretrain's gives nothing back
    layers = observe_maps(vit, torch.randn(1, 3, 64, 96))
    assert {(layer.grid, layer.key_grid) for layer in layers} == {((4, 6), (4, 6))}
    assert all((layer.attention.sum(-1) < 0.999).all() for layer in layers)  # the class token has the rest
    frame = np.zeros((64, 96, 3), np.uint8)
    assert 'Class and register tokens' in make_page(layers, frame, dict(ABOUT, size=(96, 64)))


@pytest.mark.parametrize('size', [(64, 96), (70, 90)])
def test_frame_of_a_transformer_that_pads(size):
    """mmpretrain's pads right and below to whole patches; its grid covers that."""
    load_toolbox('mmpretrain')
    vit = MODELS.build(VIT)
    vit.eval()
    picture = Picture(Path('a.png'), np.zeros((*size, 3), np.uint8), torch.randn(1, 3, *size), {}, size, size)
    layers = observe_maps(vit, picture.inputs)
    multiple = _find_multiple(vit, layers[0].grid, picture.inputs.shape[-2:])
    frame = picture.frame(multiple)
    assert frame.shape[:2] == tuple(16 * cells for cells in layers[0].grid)


def test_cells():
    assert [find_cell(point, (2, 4)) for point in [(0, 0), (0.99, 0), (0.3, 0.5), (1, 1)]] == [0, 3, 5, 7]


@pytest.mark.parametrize('heads', [False, True])
def test_picture(heads, backbone, inputs, tmp_path):
    layers = observe_maps(backbone, inputs)[:4]
    plot_maps(
        layers, np.zeros((*SIZE, 3), np.uint8), (0.5, 0.5), 'cost_$5_$6 of a picture', tmp_path / 'maps/a.png', heads
    )
    picture = cv2.imread(str(tmp_path / 'maps/a.png'))
    blue, orange = ((np.abs(picture.astype(int) - colour) < 12).all(-1) for colour in ([181, 109, 47], [18, 106, 201]))
    assert blue.sum() > 500 and orange.sum() > 500  # frames of both kinds, in BGR


# In a browser


@pytest.fixture(scope='module')
def browser():
    sync_api = pytest.importorskip(
        'playwright.sync_api', reason='the page is tried with playwright, not installed here'
    )
    program = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if program is None:
        pytest.skip('Chromium, in which the page is tried, is not installed')
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.fixture
def tab(browser, page, tmp_path):
    """The page in a tab, opened as a file; in the end nothing was loaded and no error was raised."""
    (tmp_path / 'page.html').write_text(page)
    tab = browser.new_page(viewport=dict(width=1280, height=900))
    problems = []
    tab.on('pageerror', lambda error: problems.append(str(error)))
    tab.on('console', lambda message: problems.append(message.text))
    tab.on('request', lambda request: problems.append(request.url) if request.url.startswith('http') else None)
    tab.goto((tmp_path / 'page.html').as_uri())
    tab.wait_for_selector('html[data-ready]')
    yield tab
    tab.close()
    assert problems == []


def shown_maxima(tab):
    return [float(text) for text in re.findall(r'max ([\d.]+)', tab.inner_text('#stages'))]


def by_layer(expected, layers):
    """Maps of the literal network, (heads, N, keys) for each layer."""
    rest, grouped = list(expected), []
    for layer in layers:
        grouped.append(np.stack([rest.pop(0) for _ in layer.attention]))
    return grouped


def test_click_shows_the_maps_of_a_point(tab, backbone, inputs, expected):
    layers = observe_maps(backbone, inputs)
    maps = by_layer(expected, layers)

    def wanted(point):
        cells = [find_cell(point, layer.grid) for layer in layers]
        return [attention.mean(0)[cell] for attention, cell in zip(maps, cells)]

    np.testing.assert_allclose(shown_maxima(tab), [row.max() for row in wanted(ABOUT['point'])], atol=3e-3)
    box = tab.locator('#image').bounding_box()
    point = (0.71, 0.22)
    tab.mouse.click(box['x'] + point[0] * box['width'], box['y'] + point[1] * box['height'])
    np.testing.assert_allclose(shown_maxima(tab), [row.max() for row in wanted(point)], atol=3e-3)
    place = [int(number) for number in re.findall(r'\d+', tab.inner_text('#place'))]
    np.testing.assert_allclose(place, [0.71 * 160, 0.22 * 96], atol=1.2)

    # Colours: of the last cell of the first map, away from the mark of the point.
    row = wanted(point)[0]
    pixel = tab.evaluate(
        "() => { const c = document.querySelector('#maps-0 canvas');"
        " return [...c.getContext('2d').getImageData(c.width - 4, c.height - 4, 1, 1).data].slice(0, 3); }"
    )
    colour = colormaps['magma'](row[-1] / max(row.max(), 3 / len(row)), bytes=True)[:3]
    np.testing.assert_allclose(pixel, colour, atol=6)


def test_heads_scale_and_keys(tab, backbone, inputs, expected):
    layers = observe_maps(backbone, inputs)
    maps = by_layer(expected, layers)
    cells = [find_cell(ABOUT['point'], layer.grid) for layer in layers]
    tab.select_option('#heads', 'all')
    wanted = [head[cell].max() for attention, cell in zip(maps, cells) for head in attention]
    np.testing.assert_allclose(shown_maxima(tab), wanted, atol=3e-3)
    tab.select_option('#scale', 'shared')
    assert float(tab.inner_text('#top')) == pytest.approx(max(*wanted, 3 / 15), abs=3e-3)  # 3 times uniform
    tab.select_option('#heads', '5')
    assert tab.inner_text('#stages').count('no such head') == 7  # only the last stage has six
    tab.select_option('#heads', 'mean')

    tab.focus('#image')
    before = tab.inner_text('#place')
    tab.keyboard.press('ArrowRight')
    moved = tab.inner_text('#place')
    tab.keyboard.press('ArrowLeft')
    assert moved != before == tab.inner_text('#place')
    tab.hover('#maps-3 canvas', position=dict(x=3, y=3))
    text = tab.inner_text('#cell')
    assert text.startswith('Stage 2, layer 2 (less attention), row 1, column 1: ')
    value = maps[3].mean(0)[cells[3]][0]
    assert float(re.search(r': ([\d.]+),', text)[1]) == pytest.approx(value, abs=3e-3)


def test_narrow_and_dark(tab):
    tab.set_viewport_size(dict(width=380, height=700))
    assert tab.evaluate('document.documentElement.scrollWidth') <= 380
    light = tab.evaluate('getComputedStyle(document.body).backgroundColor')
    tab.emulate_media(color_scheme='dark')
    assert tab.evaluate('getComputedStyle(document.body).backgroundColor') != light
