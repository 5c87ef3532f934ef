// One prompt, block by block.

import { $, count, el, percent } from './dom.js';

const MAX_RUNS = 200;

function tokens(text) {
  const parts = text.replace(/[[\]]/g, ' ').split(/[\s,]+/).filter(Boolean);
  const bad = parts.find((p) => !/^\d+$/.test(p) || Number(p) > 4294967295);
  if (bad !== undefined) throw new Error(`"${bad.slice(0, 40)}" is no token id`);
  if (!parts.length) throw new Error('there are no token ids');
  return parts.map(Number);
}

const kind = (run) => ['gpu', 'cpu', 'disk', 'shared'].find((t) => run.tiers.includes(t)) ?? 'none';
const shade = { gpu: 'gpu', cpu: 'cpu', disk: 'low', shared: 'low', none: 'none' };

function strip(why) {
  const s = el('div', 'strip');
  s.setAttribute('role', 'img');
  s.setAttribute('aria-label', why.runs
    .map((r) => `blocks ${r.from} to ${r.to - 1}: ${r.tiers.join(', ') || 'not held'}`).slice(0, 20).join('; '));
  for (const run of why.runs.slice(0, MAX_RUNS)) {
    const i = el('i', shade[kind(run)]);
    i.style.flexGrow = run.to - run.from;
    i.title = `blocks ${run.from}–${run.to - 1}: ${run.tiers.join(', ') || 'not held'}`;
    s.append(i);
  }
  return s;
}

function runTable(why) {
  const table = el('table', '', '', el('thead', '', '', el('tr')), el('tbody'));
  for (const h of ['Blocks', 'Tokens', 'First hash', 'Tiers', 'Device groups']) {
    const th = el('th', '', h);
    th.scope = 'col';
    table.tHead.rows[0].append(th);
  }
  const range = (a, b) => (a === b ? `${a}` : `${a}–${b}`);
  for (const r of why.runs.slice(0, MAX_RUNS)) {
    const held = r.tiers.join(' ') || (r.speculative ? 'announced by routing' : 'not held');
    const cells = [range(r.from, r.to - 1), range(r.from * why.block_size, r.to * why.block_size - 1),
      r.first_hash ?? '–', held, r.gpu_groups.join(' ')];
    const tr = el('tr', '', '', ...cells.map((c) => el('td', '', c)));
    tr.cells[3].className = r.tiers.length ? 'good' : 'bad';
    table.tBodies[0].append(tr);
  }
  return el('div', 'scroll', '', table);
}

function show(answer, explain) {
  const out = $('answer');
  out.replaceChildren();
  const why = answer.explained;
  if (!why) {
    out.append(el('p', 'bad', 'Nobody is registered for this model and tenant.'));
    return;
  }
  const who = why.dp_rank ? `${why.instance_id} rank ${why.dp_rank}` : why.instance_id;
  const part = answer.prompt_tokens ? why.cached_tokens / answer.prompt_tokens : 0;
  out.append(el('h3', '', `${who}: ${count(why.cached_tokens)} of ${count(answer.prompt_tokens)} tokens cached (${percent(part)})`));
  if (answer.coverage < 1) out.append(el('p', 'warn', `Degraded: ${percent(answer.coverage)} of the candidates are followed without a loss.`));
  out.append(strip(why), runTable(why));
  if (why.runs.length > MAX_RUNS) out.append(el('p', 'faint', `${why.runs.length - MAX_RUNS} more runs are left out; kvctl explain shows all.`));
  out.append(el('ol', '', '', ...why.steps.map((s) => el('li', '', s))));
  out.append(el('h3', '', `Candidates: ${Math.min(answer.candidates.length, answer.candidates_total)} of ${answer.candidates_total}`));
  const list = el('ul', 'tree');
  for (const c of answer.candidates) {
    const name = c.dp_rank ? `${c.instance_id} rank ${c.dp_rank}` : c.instance_id;
    const button = el('button', '', 'Explain');
    button.type = 'button';
    button.setAttribute('aria-label', `Explain ${name}`);
    button.addEventListener('click', () => explain(c.instance_id, c.dp_rank));
    list.append(el('li', '', '', el('span', 'name', name), el('span', 'share', count(c.cached_tokens)),
      el('span', 'faint', `tokens, ${count(c.cached_blocks)} blocks of ${c.block_size}`), el('span', '', '', button)));
  }
  out.append(list);
}

export function start(ask) {
  async function explain(instance, rank) {
    $('answer').replaceChildren(el('p', 'faint', 'asking …'));
    try {
      const body = {
        model: $('ask-model').value, token_ids: tokens($('ask-tokens').value), tenant_id: $('ask-tenant').value,
        lora_name: $('ask-lora').value, cache_salt: $('ask-salt').value, instance_id: instance, dp_rank: rank,
      };
      show(await ask('/v1/explain', body), explain);
    } catch (error) {
      $('answer').replaceChildren(el('p', 'bad', error.message));
    }
  }
  $('ask').addEventListener('submit', (event) => {
    event.preventDefault();
    explain($('ask-pod').value.trim(), Number($('ask-rank').value) || 0);
  });
}

export function models(names) {
  const list = $('models');
  if (list.shown === names.join('\n')) return;
  list.shown = names.join('\n');
  list.replaceChildren(...names.map((n) => { const o = el('option'); o.value = n; return o; }));
  if (!$('ask-model').value && names.length === 1) [$('ask-model').value] = names;
}
