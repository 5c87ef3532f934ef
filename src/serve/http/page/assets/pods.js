// Pods × tiers: a map of all of them, and a table of a page of them.

import { $, bar, count, el, fill, percent, rows, set, setClass, time, verdict } from './dom.js';

/** Rows of a page; each is a card on a phone. */
const narrow = matchMedia('(max-width: 44rem)');
const perPage = () => (narrow.matches ? 10 : 25);
/** Milliseconds from which on lag is worth a look, and is bad. */
const LAG = { warn: 1000, bad: 5000 };

let all = [];
let limits = { good: 0.3, acceptable: 0.1 };
let page = 0;

export const hit = (pod) => pod.reported_hit ?? pod.would_hit;
export const name = (pod) => (pod.dp_rank ? `${pod.instance_id} rank ${pod.dp_rank}` : pod.instance_id);
const sum = (pod) => pod.blocks.reduce((a, b) => a + b, 0);
const low = (pod) => pod.blocks[2] + pod.blocks[3] + pod.blocks[4];

/** How a pod is (0 good, 1 soon, 2 now), and what to know of it. */
export function condition(pod) {
  const notes = [];
  let level = 0;
  const say = (l, text) => { level = Math.max(level, l); notes.push(text); };
  if (pod.state === 'connecting') say(2, 'nothing received yet');
  if (pod.state === 'unreachable') say(2, 'not connected');
  if (pod.state === 'dead') say(2, 'no sign of it: nothing of it counts');
  if (pod.state === 'replaying') say(1, 'catching up');
  if (pod.state === 'partial') say(1, 'what it stored before is not known');
  else if (pod.state === 'live' && !pod.complete) say(1, 'part of its history is not known');
  if (pod.staleness_ms >= LAG.warn) say(pod.staleness_ms >= LAG.bad ? 2 : 1, `${count(pod.queued)} messages wait`);
  if (pod.suspect_blocks) say(1, `${count(pod.suspect_blocks)} blocks in doubt after a loss`);
  if (pod.dropped) say(1, `${count(pod.dropped)} messages dropped`);
  if (pod.last_error) say(1, pod.last_error);
  return { level, notes: notes.join('; ') };
}

const ORDERS = {
  trouble: (a, b) => b.level - a.level,
  name: () => 0,
  hit: (a, b) => (hit(a) ?? 2) - (hit(b) ?? 2),
  blocks: (a, b) => sum(b) - sum(a),
  lag: (a, b) => b.staleness_ms - a.staleness_ms,
};

function wanted() {
  const text = $('pod-filter').value.trim().toLowerCase();
  const has = (pod) => !text || [name(pod), pod.model, pod.node ?? '', pod.tenant_id]
    .some((t) => t.toLowerCase().includes(text));
  const order = ORDERS[$('pod-sort').value] ?? ORDERS.trouble;
  return all.filter(has).sort(order);
}

function row() {
  const tr = el('tr');
  const head = el('th', '', '', el('span'), el('span', 'sub faint'));
  head.scope = 'row';
  head.setAttribute('role', 'rowheader');
  tr.setAttribute('role', 'row');
  const cell = (label, className, ...children) => {
    const td = el('td', className, '', ...children);
    td.dataset.label = label;
    td.setAttribute('role', 'cell');
    return td;
  };
  const held = (label, kind) => cell(label, 'number', el('span'), bar(kind));
  tr.append(head, cell('State', ''), held('GPU', 'gpu'), held('CPU', 'cpu'), held('Disk, shared', 'low'),
    cell('Hit ratio', 'number'), cell('Lag', 'number'), cell('What to know', 'notes'));
  return tr;
}

function update(tr, pod, largest) {
  const [head, state, gpu, cpu, rest, ratio, lag, notes] = tr.children;
  set(head.firstElementChild, name(pod));
  set(head.lastElementChild, [pod.model, pod.tenant_id === 'default' ? '' : pod.tenant_id, pod.node]
    .filter(Boolean).join(' · '));
  set(state, pod.state);
  setClass(state, ['good', 'warn', 'bad'][pod.level]);
  const held = (td, n, most) => {
    set(td.firstElementChild, count(n));
    fill(td.lastElementChild, most ? n / most : 0);
  };
  held(gpu, pod.blocks[0], largest[0]);
  held(cpu, pod.blocks[1], largest[1]);
  held(rest, low(pod), largest[2]);
  const r = hit(pod);
  set(ratio, r == null ? '–' : `${pod.reported_hit == null ? '○' : '●'} ${percent(r)}`);
  setClass(ratio, `number ${verdict(r, limits)[0]}`);
  set(lag, pod.staleness_ms ? time(pod.staleness_ms / 1000) : pod.silent_ms == null ? '–' : 'none');
  set(notes, pod.notes);
}

const most = (of) => all.reduce((m, p) => Math.max(m, of(p)), 0);

function table() {
  const list = wanted();
  const size = perPage();
  const pages = Math.max(1, Math.ceil(list.length / size));
  page = Math.min(page, pages - 1);
  const largest = [most((p) => p.blocks[0]), most((p) => p.blocks[1]), most(low)];
  rows($('pod-table').tBodies[0], list.slice(page * size, page * size + size),
    (p) => JSON.stringify([p.tenant_id, p.model, p.instance_id, p.dp_rank]), row, (tr, p) => update(tr, p, largest));
  const from = list.length ? page * size + 1 : 0;
  set($('pod-page'), `${from}–${Math.min(list.length, (page + 1) * size)} of ${list.length}`);
  $('pod-back').disabled = page === 0;
  $('pod-next').disabled = page >= pages - 1;
}

/** One cell per pod, however many: the whole fleet at a glance. A canvas, since 500 elements that change
 * twice a second are felt on a phone and 500 rectangles are not. */
function map() {
  const canvas = $('map');
  const width = canvas.clientWidth;
  if (!width) return;
  const size = all.length > 200 ? 14 : 22;
  const columns = Math.max(1, Math.floor(width / size));
  const height = Math.ceil(all.length / columns) * size;
  const scale = devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.height = `${height}px`;
  }
  const draw = canvas.getContext('2d');
  const colour = getComputedStyle(document.documentElement);
  const fills = ['--good-fill', '--warn-fill', '--bad-fill'].map((c) => colour.getPropertyValue(c));
  const track = colour.getPropertyValue('--track');
  const fullest = most(sum) || 1;
  draw.setTransform(scale, 0, 0, scale, 0, 0);
  draw.clearRect(0, 0, width, height);
  all.forEach((pod, i) => {
    const [x, y, side] = [(i % columns) * size, Math.floor(i / columns) * size, size - 2];
    draw.fillStyle = track;
    draw.fillRect(x, y, side, side);
    draw.fillStyle = fills[pod.level];
    const h = Math.max(3, Math.round(side * (sum(pod) / fullest)));
    draw.fillRect(x, y + side - h, side, h);
    // Not by colour alone.
    if (pod.level) {
      draw.lineWidth = 2;
      draw.strokeStyle = fills[pod.level];
      draw.strokeRect(x + 1, y + 1, side - 2, side - 2);
    }
  });
  canvas.columns = columns;
  canvas.size = size;
  const at = (level) => all.filter((p) => p.level === level).length;
  const text = `${all.length} pods: ${at(0)} followed, ${at(1)} to look at soon, ${at(2)} to look at now`;
  if (canvas.getAttribute('aria-label') !== text) canvas.setAttribute('aria-label', text);
}

export function show(overview) {
  limits = overview.hit_ratio;
  all = overview.pods;
  for (const pod of all) Object.assign(pod, condition(pod));
  map();
  table();
}

export function start() {
  // All rows say which role they have: as cards on a phone they would lose it.
  const t = $('pod-table');
  t.setAttribute('role', 'table');
  const turn = (by) => { page += by; table(); };
  $('pod-back').addEventListener('click', () => turn(-1));
  $('pod-next').addEventListener('click', () => turn(1));
  for (const id of ['pod-filter', 'pod-sort']) $(id).addEventListener('input', () => { page = 0; table(); });
  const podAt = (event) => {
    const { columns, size } = $('map');
    return all[Math.floor(event.offsetY / size) * columns + Math.floor(event.offsetX / size)];
  };
  $('map').addEventListener('mousemove', (e) => { const p = podAt(e); $('map').title = p ? name(p) : ''; });
  $('map').addEventListener('click', (e) => {
    const pod = podAt(e);
    if (!pod) return;
    $('pod-filter').value = pod.instance_id;
    page = 0;
    table();
  });
  new ResizeObserver(() => map()).observe($('map').parentElement);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => map());
}
