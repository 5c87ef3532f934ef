// Transfers in flight.

import { $, bytes, count, el, rows, set, setClass, time } from './dom.js';

function row() {
  const tr = el('tr');
  const head = el('th', '', '', el('span'), el('span', 'sub faint'));
  head.scope = 'row';
  const cell = (label, className) => { const td = el('td', className); td.dataset.label = label; return td; };
  tr.append(head, cell('State', ''), cell('From → to', 'legs'), cell('Bytes', 'number'), cell('Time', 'number'));
  return tr;
}

function update(tr, t) {
  const [head, state, legs, size, since] = tr.children;
  set(head.firstElementChild, t.transfer_id.slice(0, 13));
  set(head.lastElementChild, t.model);
  set(state, t.stale ? `${t.state}, stale` : t.state);
  setClass(state, t.stale ? 'bad' : '');
  set(legs, t.legs.map((l) => `${l.from} → ${l.to} (${count(l.tokens)} tokens, ${l.tier})`).join(', then ') || 'in place');
  set(size, bytes(t.legs.reduce((n, l) => n + l.bytes, 0)));
  set(since, `${time(t.since_ms / 1000)}, ${time(t.left_ms / 1000)} left`);
}

export function show({ transfers }) {
  const { states, live, enabled } = transfers;
  const over = ['done', 'failed', 'expired', 'cancelled', 'superseded'];
  const under = Object.entries(states).filter(([s, n]) => n && !over.includes(s)).map(([s, n]) => `${n} ${s}`);
  const ended = over.filter((s) => states[s]).map((s) => `${states[s]} ${s}`);
  set($('transfer-counts'), enabled
    ? `Under way: ${under.join(', ') || 'none'}. Remembered: ${ended.join(', ') || 'none'}.`
    : 'Transfers are not coordinated here (transfers.enabled).');
  $('transfer-table').hidden = !live.length;
  rows($('transfer-table').tBodies[0], live, (t) => t.transfer_id, row, update);
}
