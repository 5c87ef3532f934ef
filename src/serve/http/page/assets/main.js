// Asks kvd every other second while somebody looks, and shows what it says.

import * as auth from './auth.js';
import { $, bytes, count, el, percent, set, setClass, time, verdict } from './dom.js';
import * as explain from './explain.js';
import * as pods from './pods.js';
import * as prefixes from './prefixes.js';
import * as transfers from './transfers.js';

const EVERY = 2000;
const PATIENCE = 10000;
let before = null;
let answeredAt = 0;
let turn = 0;

class Refused extends Error {}

/** JSON from kvd, or why there is none. */
async function ask(path, body) {
  const headers = auth.headers();
  if (body) headers['content-type'] = 'application/json';
  const response = await fetch(path, {
    method: body ? 'POST' : 'GET', headers, body: body && JSON.stringify(body), signal: AbortSignal.timeout(PATIENCE),
  });
  const answer = await response.json();
  if (response.status === 401 || response.status === 403) throw new Refused(auth.refuse(response.status, answer.error));
  if (!response.ok) throw new Refused(answer.error ?? `kvd answers ${response.status}`);
  return answer;
}

function tile(id, value, note, className = '', link = '') {
  const [, shown, said] = $(id).children;
  set(shown, value);
  setClass(shown, `value ${className}`.trim());
  if (said.textContent !== note + link) {
    said.textContent = note;
    if (link) {
      const a = el('a', '', link);
      a.href = '/page/troubleshooting.md';
      said.append(a);
    }
  }
}

function stage(o) {
  const live = o.states.live ?? 0;
  const total = Object.values(o.states).reduce((a, b) => a + b, 0);
  const { stage: s, waiting, restored_from: from, restored_publishers: n } = o.warmup;
  const back = n ? `; ${count(n)} publishers back from ${from}` : '';
  const [text, className] = {
    restoring: ['restoring what was known', 'warn'],
    discovering: ['looking for engines', 'warn'],
    warming: [`warming up: waiting for ${count(waiting)}`, 'warn'],
    given_up: [`ready, degraded: ${count(waiting)} not followed yet`, 'bad'],
    warm: [live < total ? `ready, degraded: ${count(total - live)} of ${count(total)} not live` : 'ready', live < total ? 'warn' : 'good'],
  }[s] ?? [s, 'warn'];
  set($('stage'), o.ready || s !== 'warm' ? text : 'not ready: being stopped');
  setClass($('stage'), `pill ${o.ready || s !== 'warm' ? className : 'bad'}`);
  $('stage').title = `up ${time(o.uptime_seconds)}${back}`;
  set($('version'), o.version);
}

/** The bound that 99 of 100 questions since the last look stayed under. */
function p99(q, last) {
  const since = q.seconds_cumulative.map((n, i) => n - (last?.seconds_cumulative[i] ?? 0));
  const all = q.total - (last?.total ?? 0);
  if (all <= 0) return null;
  const i = since.findIndex((n) => n >= all * 0.99);
  return i < 0 ? Infinity : q.seconds_bounds[i];
}

function hitTile(h) {
  const ratio = h.reported ?? h.best;
  const [className, word] = verdict(ratio, h);
  const what = h.reported == null ? 'on the best pod' : `reported; ${percent(h.best)} on the best pod`;
  const scale = `> ${h.good * 100} % good, > ${h.acceptable * 100} % acceptable`;
  const note = ratio == null ? 'nothing was asked lately' : `${word} (${scale}), ${what}`;
  tile('tile-hit', percent(ratio), className === 'bad' ? `${note}: ` : note, className, className === 'bad' ? 'what to do' : '');
}

function glance(o, now) {
  const last = before && now > before.now ? before : null;
  const per = (n, old) => (last ? (n - old) / ((now - last.now) / 1000) : null);
  hitTile(o.hit_ratio);
  const total = Object.values(o.states).reduce((a, b) => a + b, 0);
  const others = Object.entries(o.states).filter(([s, n]) => s !== 'live' && n).map(([s, n]) => `${n} ${s}`);
  tile('tile-pods', `${count(o.states.live ?? 0)} / ${count(total)}`, others.join(', ') || (total ? 'all live' : 'nobody is registered'),
    others.length ? 'warn' : '');
  const worst = o.pods.reduce((m, p) => (p.staleness_ms > (m?.staleness_ms ?? -1) ? p : m), null);
  const lag = worst?.staleness_ms ?? 0;
  const events = per(o.events.total, last?.o.events.total);
  const rate = events == null ? `${count(o.events.total)} events` : `${count(Math.round(events))} events/s`;
  tile('tile-lag', lag ? time(lag / 1000) : 'none', lag ? `${pods.name(worst)}; ${rate}` : rate, lag >= 5000 ? 'bad' : lag >= 1000 ? 'warn' : '');
  const asked = per(o.queries.total, last?.o.queries.total);
  const slow = p99(o.queries, last?.o.queries);
  const said = slow == null ? '' : slow === Infinity ? ', p99 over 0.5 s' : `, p99 under ${time(slow)}`;
  tile('tile-queries', asked == null ? count(o.queries.total) : `${count(Math.round(asked))} /s`,
    `${count(o.queries.total)} so far${said}${o.queries.unknown_model ? `, ${count(o.queries.unknown_model)} of unknown models` : ''}`);
  const tiers = Object.entries(o.index.blocks).filter(([, n]) => n).map(([t, n]) => `${t} ${count(n)}`);
  tile('tile-blocks', count(Object.values(o.index.blocks).reduce((a, b) => a + b, 0)), tiers.join(', '));
  const full = o.index.bytes / o.index.max_bytes;
  tile('tile-memory', bytes(o.index.bytes), `${percent(full)} of ${bytes(o.index.max_bytes)}`, full > 0.95 ? 'bad' : full > 0.8 ? 'warn' : '');
}

async function look() {
  if (auth.isLocked()) return;
  try {
    // What is shared changes slowly and is asked for every other time.
    const [overview, shared] = await Promise.all([ask('/v1/overview'), turn % 2 ? null : ask('/v1/prefixes')]);
    turn += 1;
    const now = Date.now();
    stage(overview);
    glance(overview, now);
    pods.show(overview);
    transfers.show(overview);
    if (shared) prefixes.show(shared);
    explain.models([...new Set(overview.pods.map((p) => p.model))].sort());
    before = { now, o: overview };
    answeredAt = now;
    if (turn === 1) performance.mark('shown');
    $('trouble').hidden = true;
    auth.accept();
    document.body.dataset.shown = turn;
  } catch (error) {
    $('trouble').hidden = auth.isLocked();
    if (auth.isLocked()) {
      set($('stage'), 'a token is needed');
      setClass($('stage'), 'pill bad');
      return;
    }
    const why = error instanceof Refused ? error.message : 'kvd does not answer';
    set($('trouble'), answeredAt ? `${why}. What is below is of before; trying again.` : `${why}. Trying again.`);
  }
}

function age() {
  const old = answeredAt ? (Date.now() - answeredAt) / 1000 : null;
  set($('age'), old == null ? '' : old < 5 ? 'live' : `of ${time(old)} ago`);
}

async function run() {
  for (;;) {
    if (document.visibilityState === 'visible') await look();
    await new Promise((go) => {
      const wake = () => { clearTimeout(timer); document.removeEventListener('visibilitychange', wake); go(); };
      const timer = setTimeout(wake, EVERY);
      document.addEventListener('visibilitychange', wake);
    });
  }
}

auth.start(look);
pods.start();
explain.start(ask);
setInterval(age, 1000);
run();
