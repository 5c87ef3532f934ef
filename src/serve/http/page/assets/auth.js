// The token that this tab shows to kvd, where kvd wants one. It is kept for the tab alone (sessionStorage), sent as a
// header and nowhere else, and never part of an address.

import { $, set } from './dom.js';

const KEY = 'kvd-token';
let token = '';
/** Nothing is asked before there is another token: kvd has said no. */
let locked = false;

/** A browser may keep nothing; then the token is known until the page is left. */
function kept(work) {
  try { return work(sessionStorage); } catch { return null; }
}

export const isLocked = () => locked;
export const headers = () => (token ? { authorization: `Bearer ${token}` } : {});

/** Takes note of a refusal, and says what it means. */
export function refuse(status, error) {
  locked = true;
  const why = status === 403 ? 'This token does not give the right to read' : token ? 'kvd does not know this token'
    : 'kvd answers only who shows a token';
  set($('auth-why'), why);
  $('auth').className = token ? 'banner refused' : 'banner';
  $('auth').hidden = false;
  $('token').setAttribute('aria-invalid', token ? 'true' : 'false');
  show();
  return error ?? why;
}

/** All is well. */
export function accept() {
  locked = false;
  $('auth').hidden = true;
  document.body.dataset.known = '';
  show();
}

function show() {
  $('forget').hidden = !token;
  document.body.toggleAttribute('data-locked', locked);
}

/** What is behind a link needs the token as well, which a link does not show. */
async function follow(event) {
  if (!token) return;
  event.preventDefault();
  const answer = await fetch(event.currentTarget.href, { headers: headers() });
  window.open(URL.createObjectURL(new Blob([await answer.text()], { type: 'text/plain;charset=utf-8' })), '_blank', 'noopener');
}

export function start(look) {
  token = kept((s) => s.getItem(KEY)) ?? '';
  show();
  $('auth').addEventListener('submit', (event) => {
    event.preventDefault();
    token = $('token').value.trim();
    $('token').value = '';
    kept((s) => s.setItem(KEY, token));
    locked = false;
    look();
  });
  $('forget').addEventListener('click', () => {
    token = '';
    kept((s) => s.removeItem(KEY));
    // What it has let somebody see goes with it.
    location.reload();
  });
  for (const link of document.querySelectorAll('.reads a')) link.addEventListener('click', follow);
}
