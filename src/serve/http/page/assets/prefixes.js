// The hottest prefixes as a tree, and which pods hold them.

import { $, bar, count, el, fill, percent, rows, set, setClass } from './dom.js';

const COLUMNS = 10;
const PODS = 24;
const DEPTHS = 5;

/** In the order of a tree: each prefix, then what goes on from it, the heaviest first. */
function ordered(prefixes) {
  const below = new Map();
  prefixes.forEach((p, i) => {
    p.number = i;
    below.set(p.parent, [...(below.get(p.parent) ?? []), p]);
  });
  const out = [];
  const walk = (parent, depth) => {
    for (const p of below.get(parent) ?? []) {
      p.depth = depth;
      p.label = `P${out.length + 1}`;
      out.push(p);
      walk(p.number, depth + 1);
    }
  };
  walk(null, 0);
  return out;
}

function line() {
  return el('li', '', '', el('span', 'name', '', el('span'), el('span', 'root')), el('span', 'share'), bar(),
    el('span', 'held faint'));
}

function update(li, p, answer) {
  const [title, share, part, held] = li.children;
  setClass(li, `d${Math.min(p.depth, DEPTHS)}`);
  li.setAttribute('aria-level', p.depth + 1);
  set(title.firstElementChild, `${p.label} · tokens ${count(p.tokens[0])}–${count(p.tokens[1])}`);
  const root = answer.roots[p.root];
  const of = [root.model, root.lora_name, root.tenant_id === 'default' ? '' : root.tenant_id];
  set(title.lastElementChild, p.depth ? '' : of.filter(Boolean).join(' · '));
  set(share, percent(p.share));
  fill(part, p.share);
  set(held, `${count(p.prompts)} prompts lately; on ${p.holders} of ${p.candidates} pods`);
}

/** Pods of every prefix in turn, so that each prefix has some. */
function some(prefixes) {
  const out = new Set();
  for (let i = 0; out.size < PODS && prefixes.some((p) => i < p.held_by.length); i += 1) {
    for (const p of prefixes) if (i < p.held_by.length && out.size < PODS) out.add(p.held_by[i]);
  }
  return [...out];
}

function sharing(list, answer) {
  const shown = list.filter((p) => p.holders > 0).slice(0, COLUMNS);
  const many = new Map();
  for (const p of shown) for (const n of p.held_by) many.set(n, (many.get(n) ?? 0) + 1);
  const pods = some(shown).sort((a, b) => many.get(b) - many.get(a) || a - b);
  const table = $('sharing');
  $('sharing-empty').hidden = pods.length > 0;
  const head = ['Pod', ...shown.map((p) => p.label)];
  rows(table.tHead, pods.length ? [head] : [], () => 'head', () => el('tr'), (tr) => {
    rows(tr, head, (_, i) => i, () => { const th = el('th'); th.scope = 'col'; return th; }, set);
  });
  rows(table.tBodies[0], pods, (n) => n, () => { const th = el('th'); th.scope = 'row'; return el('tr', '', '', th); },
    (tr, n) => {
      const pod = answer.pods[n];
      const cells = tr.cells;
      set(cells[0], pod.dp_rank ? `${pod.instance_id} rank ${pod.dp_rank}` : pod.instance_id);
      while (cells.length - 1 < shown.length) tr.append(el('td'));
      while (cells.length - 1 > shown.length) tr.lastElementChild.remove();
      shown.forEach((p, i) => {
        const has = p.held_by.includes(n);
        set(cells[i + 1], has ? '●' : '·');
        cells[i + 1].setAttribute('aria-label', has ? 'holds it' : 'does not, or is not among those named');
      });
    });
}

export function show(answer) {
  const list = ordered(answer.prefixes);
  // A row of another place in the tree is another row.
  rows($('prefix-tree'), list, (p) => p.id, line, (li, p) => update(li, p, answer));
  set($('prefix-note'), list.length
    ? `Beginnings that many prompts share; each line goes on from the one it is indented under. Prompts fade by half in ${
      Math.round(answer.half_life_seconds / 60)} minutes; at most ${answer.looked_at_per_second} a second are looked at and stand for the others.`
    : 'No two prompts began alike lately.');
  sharing(list, answer);
}
