// Small things that every part of the page uses. Names come from outside and may be anything, so text is
// only ever set as text.

export const $ = (id) => document.getElementById(id);

/** An element with a class, text and children. */
export function el(tag, className = '', text = '', ...children) {
  const e = document.createElement(tag);
  if (className) e.className = className;
  if (text !== '') e.textContent = text;
  e.append(...children);
  return e;
}

/** Sets text only where it changed: a page of 500 pods that does not change costs nothing to draw. */
export function set(e, text) {
  if (e.textContent !== text) e.textContent = text;
}

export function setClass(e, className) {
  if (e.className !== className) e.className = className;
}

/** Makes the children of `parent` show `items` in order, by key; rows are made once and then updated. */
export function rows(parent, items, key, make, update) {
  const kept = parent.kept ??= new Map();
  const seen = new Set();
  let at = parent.firstElementChild;
  items.forEach((item, i) => {
    const k = key(item, i);
    seen.add(k);
    let row = kept.get(k);
    if (!row) kept.set(k, row = make(item));
    update(row, item, i);
    if (row === at) at = at.nextElementSibling;
    else parent.insertBefore(row, at);
  });
  for (const [k, row] of kept) {
    if (!seen.has(k)) { row.remove(); kept.delete(k); }
  }
}

/** A bar, and how to fill it (0 to 1). */
export function bar(kind = '') {
  const outer = el('span', `bar ${kind}`.trim(), '', el('i'));
  outer.setAttribute('aria-hidden', 'true');
  return outer;
}

export function fill(outer, part) {
  const scale = `scaleX(${Math.max(0, Math.min(1, part || 0)).toFixed(3)})`;
  const inner = outer.firstElementChild;
  if (inner.style.transform !== scale) inner.style.transform = scale;
}

const numbers = new Intl.NumberFormat('en', { maximumFractionDigits: 1 });
const compact = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });

export const count = (n) => (n < 10000 ? numbers.format(n) : compact.format(n));
export const percent = (r) => (r == null ? '–' : `${(r * 100).toFixed(r < 0.0995 ? 1 : 0)} %`);

export function bytes(n) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let i = 0;
  while (n >= 1024 && i < units.length - 1) { n /= 1024; i += 1; }
  return `${numbers.format(n)} ${units[i]}`;
}

export function time(seconds) {
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${numbers.format(seconds * 1e3)} ms`;
  if (seconds < 120) return `${numbers.format(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

/** The guide's thresholds, as a class and as a word. */
export function verdict(ratio, limits) {
  if (ratio == null) return ['', ''];
  if (ratio > limits.good) return ['good', 'good'];
  if (ratio > limits.acceptable) return ['warn', 'acceptable'];
  return ['bad', 'look here'];
}
