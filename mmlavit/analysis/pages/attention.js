'use strict';

const page = JSON.parse(document.getElementById('page').textContent);
const byId = (id) => document.getElementById(id);
const colours = Uint8Array.from(page.colours.match(/../g), (hex) => parseInt(hex, 16)); // 256 x (red, green, blue)
const [frameWidth, frameHeight] = page.frame;
const mapWidth = Math.round(Math.min(128, 128 * Math.sqrt(frameWidth / frameHeight)));
const mapHeight = Math.round((mapWidth * frameHeight) / frameWidth);
const state = { point: page.point, heads: 'mean', scale: 'map', under: false, grid: page.layers[0].queries };
let values, maxima, grey;

/** Bytes of a base64 text of zlib's format. */
async function unpack(text) {
  const packed = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('deflate'));
  return new Response(stream).arrayBuffer();
}

/** Number of the cell of a grid [rows, columns] that the point is in. */
function cellOf(grid) {
  const [column, row] = [grid[1], grid[0]].map((n, axis) => Math.min(Math.floor(state.point[axis] * n), n - 1));
  return row * grid[1] + column;
}

/** Attention of the point over the keys, of one head of a layer. */
function attentionOf(layer, head) {
  const [rows, columns] = layer.queries;
  const keys = layer.keys[0] * layer.keys[1];
  const map = head * rows * columns + cellOf(layer.queries);
  const factor = maxima[layer.first_map + map] / 65535 / 255;
  const start = layer.first_value + map * keys;
  return Float32Array.from(values.subarray(start, start + keys), (value) => value * factor);
}

function meanOf(maps) {
  return maps[0].map((_, key) => maps.reduce((sum, map) => sum + map[key], 0) / maps.length);
}

function mostOf(map) {
  return map.reduce((a, b) => Math.max(a, b), 0);
}

/** Value of the last colour: the maximum, but so much that uniform attention does not look like a peak. */
function topOf(map) {
  return Math.max(mostOf(map), page.least / map.length);
}

/** What is shown of a layer: names and maps. */
function shownOf(layer) {
  const heads = [...Array(layer.heads).keys()];
  if (state.heads === 'mean') return [['', meanOf(heads.map((head) => attentionOf(layer, head)))]];
  const chosen = state.heads === 'all' ? heads : heads.filter((head) => head === Number(state.heads));
  return chosen.map((head) => [`head ${head + 1}`, attentionOf(layer, head)]);
}

/** Small canvas with a pixel for each key. */
function heatOf(map, [rows, columns], top) {
  const heat = new OffscreenCanvas(columns, rows);
  const context = heat.getContext('2d');
  const pixels = context.createImageData(columns, rows);
  map.forEach((value, key) => {
    const colour = 3 * Math.min(255, Math.round((255 * value) / top));
    pixels.data.set([colours[colour], colours[colour + 1], colours[colour + 2], 255], 4 * key);
  });
  context.putImageData(pixels, 0, 0);
  return heat;
}

function draw(canvas, map, keys, top) {
  const ratio = window.devicePixelRatio || 1;
  [canvas.width, canvas.height] = [Math.round(mapWidth * ratio), Math.round(mapHeight * ratio)];
  const context = canvas.getContext('2d');
  if (state.under) context.drawImage(grey, 0, 0, canvas.width, canvas.height);
  context.globalAlpha = state.under ? 0.72 : 1;
  context.imageSmoothingEnabled = false;
  context.drawImage(heatOf(map, keys, top), 0, 0, canvas.width, canvas.height);
  context.globalAlpha = 1;
  for (const [colour, width] of [['#000', 3.5], ['#fff', 1.8]]) {
    context.beginPath();
    context.arc(state.point[0] * canvas.width, state.point[1] * canvas.height, 4.5 * ratio, 0, 2 * Math.PI);
    context.strokeStyle = colour;
    context.lineWidth = width * ratio;
    context.stroke();
  }
}

function element(tag, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

/** Figures of a layer, in place of those before. */
function show(layer, shown, top) {
  const box = byId(`maps-${layer.number}`);
  const figures = shown.map(([name, map]) => {
    const most = mostOf(map);
    const canvas = element('canvas', { title: name });
    draw(canvas, map, layer.keys, state.scale === 'map' ? topOf(map) : top);
    canvas.setAttribute('role', 'img');
    canvas.setAttribute('aria-label', `${layer.title} ${name}, maximum ${most.toFixed(3)}`);
    canvas.addEventListener('pointermove', (event) => read(event, layer, name, map));
    canvas.addEventListener('pointerleave', () => byId('key').toggleAttribute('hidden', true));
    const often = `${(most * map.length).toFixed(1)} × uniform`.replaceAll(' ', '\u00a0');
    const caption = element('figcaption', {}, `${name ? `${name}: ` : ''}max ${most.toFixed(3)}, ${often}`);
    return element('figure', {}, canvas, caption);
  });
  if (!figures.length) figures.push(element('p', { className: 'muted' }, `no such head (it has ${layer.heads})`));
  box.replaceChildren(...figures);
}

/** Tell the value of the key under the pointer. */
function read(event, layer, name, map) {
  const [rows, columns] = layer.keys;
  const box = event.target.getBoundingClientRect();
  const column = Math.min(columns - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * columns)));
  const row = Math.min(rows - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * rows)));
  const value = map[row * columns + column];
  const place = `${[layer.title, name].filter(Boolean).join(', ')}, row ${row + 1}, column ${column + 1}`;
  byId('cell').textContent = `${place}: ${value.toFixed(4)}, ${(value * map.length).toFixed(1)} × uniform.`;
  state.grid = layer.queries;
  mark();
  frame('key', row * columns + column, layer.keys);
}

/** Put a frame of the image around a cell of a grid. */
function frame(id, cell, [rows, columns]) {
  const place = { x: (cell % columns) / columns, y: Math.floor(cell / columns) / rows, width: 1 / columns, height: 1 / rows };
  for (const [name, value] of Object.entries(place)) byId(id).setAttribute(name, `${100 * value}%`);
  byId(id).removeAttribute('hidden');
}

/** Mark the point in the image, and the area of points that share its map. */
function mark() {
  const [x, y] = state.point;
  byId('point').setAttribute('cx', `${100 * x}%`);
  byId('point').setAttribute('cy', `${100 * y}%`);
  frame('area', cellOf(state.grid), state.grid);
  byId('place').textContent = `Point ${Math.floor(x * frameWidth)}, ${Math.floor(y * frameHeight)} (pixels from left and top).`;
}

function update() {
  const shown = page.layers.map(shownOf);
  const top = Math.max(...shown.flat().map(([, map]) => topOf(map)));
  page.layers.forEach((layer, i) => show(layer, shown[i], top));
  byId('top').textContent = state.scale === 'map' ? `maximum of the map, or ${page.least} × uniform` : top.toFixed(3);
  mark();
}

function moveTo(x, y) {
  const inside = (place) => Math.min(1 - 1e-6, Math.max(0, place));
  state.point = [inside(x), inside(y)];
  byId('cell').textContent = 'Point at a map to read a value and to see its key in the image.';
  update();
}

/** Headings and empty places of all layers. */
function layOut() {
  const stages = new Map();
  page.layers.forEach((layer, number) => {
    layer.number = number;
    if (!stages.has(layer.stage)) stages.set(layer.stage, []);
    stages.get(layer.stage).push(layer);
  });
  for (const [stage, layers] of stages) {
    const boxes = layers.map((layer, place) => {
      const kind = layer.less ? 'less attention' : 'vanilla';
      layer.title = `${stages.size > 1 ? `Stage ${stage}, l` : 'L'}ayer ${place + 1} (${kind})`;
      const heading = element('h3', {}, `Layer ${place + 1} `, element('span', { className: 'kind' }, kind));
      const keys = `${layer.keys.join(' × ')} ${layer.less ? 'reference keys' : 'keys'}`;
      const maps = element('div', { className: 'maps', id: `maps-${layer.number}` });
      return element('article', { className: layer.less ? 'layer less' : 'layer' }, heading, element('p', {}, keys), maps);
    });
    const [rows, columns] = layers[0].grid;
    const heads = `${layers[0].heads} ${layers[0].heads === 1 ? 'head' : 'heads'}`;
    const about = element('span', { className: 'muted' }, `${rows} × ${columns} queries, ${heads}`);
    const header = element('header', {}, element('h2', {}, stages.size > 1 ? `Stage ${stage}` : 'All layers'), about);
    byId('stages').append(
      element('section', { className: 'stage' }, header, element('div', { className: 'layers' }, ...boxes)),
    );
  }
}

function listen() {
  const image = byId('image');
  image.addEventListener('click', (event) => {
    const box = image.getBoundingClientRect();
    moveTo((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  });
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  image.addEventListener('keydown', (event) => {
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    const [rows, columns] = page.layers[0].queries;
    const cells = event.shiftKey ? 4 : 1;
    moveTo(state.point[0] + (cells * step[0]) / columns, state.point[1] + (cells * step[1]) / rows);
  });
  for (const name of ['heads', 'scale']) {
    byId(name).addEventListener('change', (event) => { state[name] = event.target.value; update(); });
  }
  byId('under').addEventListener('change', (event) => { state.under = event.target.checked; update(); });
}

/** The image without its colours, for below the maps. */
function greyed(image) {
  const canvas = new OffscreenCanvas(frameWidth, frameHeight);
  const context = canvas.getContext('2d');
  context.drawImage(image, 0, 0, frameWidth, frameHeight);
  const pixels = context.getImageData(0, 0, frameWidth, frameHeight);
  for (let i = 0; i < pixels.data.length; i += 4) {
    pixels.data.fill(0.3 * pixels.data[i] + 0.59 * pixels.data[i + 1] + 0.11 * pixels.data[i + 2], i, i + 3);
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

async function start() {
  const most = Math.max(...page.layers.map((layer) => layer.heads));
  for (let head = 0; most > 1 && head < most; head++) {
    byId('heads').append(element('option', { value: String(head) }, `head ${head + 1}`));
  }
  const stops = [...Array(17).keys()].map((i) => `rgb(${colours.subarray(3 * Math.min(255, 16 * i)).slice(0, 3).join()})`);
  byId('bar').style.background = `linear-gradient(to right, ${stops.join()})`;
  byId('stages').style.setProperty('--width', `${mapWidth}px`);
  byId('stages').style.setProperty('--height', `${mapHeight}px`);
  const image = document.querySelector('#image img');
  await image.decode();
  grey = greyed(image);
  values = new Uint8Array(await unpack(page.values));
  maxima = new Uint16Array(await unpack(page.maxima));
  layOut();
  listen();
  update();
  document.documentElement.dataset.ready = 'true';
}

start().catch((error) => {
  byId('stages').append(element('p', {}, `The maps cannot be drawn: ${error.message}. The page needs a browser of 2023 or later.`));
});
