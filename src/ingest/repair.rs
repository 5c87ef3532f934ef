//! Follows one publisher: what does a replay do?
//!
//! The other half of [`super::follow`]. A replay is asked for on first contact, after a gap,
//! and to make sure after silence; [`super::replay`] says what each answer means.

use std::time::{Duration, Instant};

use kvproto::engine::decode;
use kvproto::frames::{self, Replay};
use tracing::debug;

use super::cursor::{Cursor, Seen};
use super::follow::{Follower, Request, Sink};
use super::message::Message;
use super::replay::{Answer, Session, Verdict};
use super::rules::Rule;

/// The subscription takes effect a moment after the first replay was asked for; what was
/// published in between is looked for this much later. So is whether the engine keeps a history at
/// all: later, an empty answer could as well be that of another life.
pub(super) const FIRST_CHECK: Duration = Duration::from_secs(1);

impl<S: Sink> Follower<S> {
    /// Takes an answer to request `ask`.
    pub fn answer(&mut self, ask: u64, message: &Message, now: Instant) {
        if self.session.as_ref().is_none_or(|s| s.ask() != ask) {
            return;
        }
        match frames::replay(&message.frames()) {
            Ok(Replay::Batch { seq, payload }) => self.replayed(seq, payload, now),
            Ok(Replay::End) => self.ended(now),
            Err(e) => self.malformed(&e),
        }
        let overdue = self.session.is_some_and(|s| s.is_overdue(now));
        if overdue {
            self.accept_loss("replay took too long", now);
        }
    }

    /// The answers to request `ask` were cut off, because they came faster than they could be
    /// applied.
    pub fn cut_off(&mut self, ask: u64, now: Instant) {
        if self.session.as_ref().is_some_and(|s| s.ask() == ask) {
            self.attempt_failed(now);
        }
    }

    /// When [`timeout`](Self::timeout) wants to be called.
    pub fn deadline(&self) -> Option<Instant> {
        if self.waiting {
            return None;
        }
        let due = self.session.as_ref().map(Session::deadline).or(self.check_at);
        due.into_iter().chain(self.doubt_until).chain(self.vital.deadline()).min()
    }

    /// Does what is due at `now`.
    pub fn timeout(&mut self, now: Instant) {
        if self.doubt_until.is_some_and(|at| at <= now) {
            self.doubt_until = None;
            self.sink.drop_doubted();
        }
        if self.vital.is_over(now) {
            self.pass_away();
        }
        match &self.session {
            Some(session) if now < session.deadline() => {}
            Some(session) if session.is_pausing() => self.ask(now),
            Some(_) => self.attempt_failed(now),
            None => self.check(now),
        }
    }

    /// Asks for what is missing, unless that is under way.
    pub(super) fn repair(&mut self, now: Instant) {
        let waited_for = self.held.len() > 1 && !self.checking;
        self.checking = false;
        match &mut self.session {
            // Until now nobody waited for the answer.
            Some(session) if !waited_for => {
                session.urge(now);
                if session.is_pausing() {
                    self.ask(now);
                }
            }
            Some(_) => {}
            None => {
                self.session = Some(Session::new(self.limits.patience, now));
                self.ask(now);
            }
        }
    }

    pub(super) fn ask(&mut self, now: Instant) {
        let Some(session) = &mut self.session else { return };
        let ask = self.next_ask;
        self.next_ask += 1;
        let from = session.asked(ask, self.cursor.last(), now);
        debug!(publisher = %self.profile.name, from, "asking for a replay");
        self.counters.replays.add(1);
        self.request = Some(Request::Ask { ask, from });
    }

    /// Ends the session.
    pub(super) fn finish(&mut self) {
        if self.session.take().is_some() {
            self.request = Some(Request::Close);
        }
        self.checking = false;
    }

    fn replayed(&mut self, seq: u64, payload: &[u8], now: Instant) {
        let last = self.cursor.last();
        let Some(session) = &mut self.session else { return };
        let meaning = self.rules.of_replayed(session.answer(seq, last, now));
        self.heard = true;
        // It was asked though it was taken for dead before anything was known of it: nothing is to be learnt anew.
        self.vital.heard(now);
        self.keeps_history = true;
        self.checkable = true;
        let batch = decode(self.profile.engine, payload);
        match meaning {
            Answer::Known => return,
            Answer::Backwards => {
                self.forget("numbers fall within a replay");
                self.held.clear();
                self.cursor = Cursor::default();
                if seq != 0 {
                    return self.attempt_failed(now);
                }
            }
            Answer::Anchor => {
                if batch.is_ok_and(|b| self.cursor.contradicts(seq, b.ts)) {
                    return self.taken_over("another batch has the number of the last one", true, now);
                }
                self.is_proven();
                return self.caught_up(now);
            }
            Answer::Next => {}
            Answer::Hole { kept: true } => match session.failed(last, false, now) {
                Verdict::Ask => return self.ask(now),
                Verdict::Wait => return self.disown(),
                Verdict::GiveUp => {
                    if !self.skip_hole(seq, "replays leave it out", now) {
                        return;
                    }
                }
            },
            Answer::Hole { kept: false } => {
                if !self.skip_hole(seq, "the engine does not keep them", now) {
                    return;
                }
            }
        }
        match batch {
            Ok(batch) => {
                self.count_skipped(&batch);
                self.apply(Seen { seq, ts: batch.ts, empty: batch.is_empty() }, &batch);
            }
            Err(e) => self.step_over(seq, &e),
        }
        let stale = self.held.oldest_seen().is_some_and(|held| self.cursor.is_earlier(held));
        if stale {
            self.held.clear();
            self.cursor.forget_live();
        }
        self.drain();
        self.caught_up(now);
    }

    /// Ends a replay that has brought all that the live socket has.
    fn caught_up(&mut self, now: Instant) {
        let all = self.held.is_empty() && self.cursor.live().is_some_and(|l| Some(l) <= self.cursor.last());
        if all && !self.checking {
            self.finish();
            self.check_at = Some(now + self.limits.check_after);
        }
    }

    /// Accepts that nothing before `seq` can be had. False where the batches held back reach
    /// further back than `seq`: then they were applied and the replay is over.
    fn skip_hole(&mut self, seq: u64, why: &str, now: Instant) -> bool {
        if self.held.front().is_some_and(|front| front <= seq) {
            self.accept_loss(why, now);
            return false;
        }
        self.lose(seq, why, now);
        true
    }

    fn ended(&mut self, now: Instant) {
        let Some(session) = &mut self.session else { return };
        session.ended();
        self.heard = true;
        if session.anchor_is_gone() && self.rules.hold(Rule::MissingAnchor) {
            // The engine has published less than was applied, so it is another one, and what
            // was held back is the earlier one's too.
            return self.taken_over("it has published less than was applied", false, now);
        }
        if !self.rules.hold(Rule::EarlyEnd) {
            while let Some(batch) = self.held.pop() {
                self.apply_held(batch);
            }
        }
        if !self.held.is_empty() {
            return self.attempt_failed(now);
        }
        if self.cursor.last().is_none() {
            // Nothing was ever published. An engine that was followed before and keeps no
            // history says the same.
            self.complete = !self.met || self.keeps_history;
        }
        let first = self.cursor.live().is_none() && !self.checking;
        self.finish();
        self.check_at = Some(now + if first { FIRST_CHECK } else { self.limits.check_after });
    }

    /// Another engine answers: forgets what was applied and asks from the start. What was held
    /// back stays if it can be the new engine's.
    fn taken_over(&mut self, why: &str, keep_held: bool, now: Instant) {
        self.checking = false;
        self.forget(why);
        if keep_held {
            self.cursor.forget_applied();
        } else {
            self.held.clear();
            self.cursor = Cursor::default();
        }
        self.attempt_failed(now);
    }

    fn attempt_failed(&mut self, now: Instant) {
        let Some(session) = &mut self.session else { return };
        // An attempt after one that brought something may bring nothing, because its answer was
        // cut off at once: only a check that has found nothing at all ends here.
        if self.checking && !session.has_found(self.cursor.last()) {
            // Silence is no reason to doubt what is known.
            self.finish();
            self.check_at = Some(now + self.limits.check_after);
            return;
        }
        let patient = self.held.is_empty() && !session.heard();
        match session.failed(self.cursor.last(), patient, now) {
            Verdict::Ask => self.ask(now),
            Verdict::Wait => {}
            Verdict::GiveUp if self.checking => {
                self.finish();
                self.check_at = Some(now + self.limits.check_after);
            }
            Verdict::GiveUp => {
                // An engine that has published and answers without a batch keeps no history, and an
                // empty answer of it means nothing.
                self.checkable = self.keeps_history || !session.heard();
                self.accept_loss("replay brought nothing", now);
            }
        }
    }

    /// Takes no more answers to the latest request.
    fn disown(&mut self) {
        if let Some(session) = &mut self.session {
            session.disown();
        }
        self.request = Some(Request::Close);
    }

    /// Asks, after silence, whether anything was missed: batches lost while the engine or the
    /// connection came up would otherwise show only with its next batch.
    fn check(&mut self, now: Instant) {
        let Some(due) = self.check_at else { return };
        if !self.rules.hold(Rule::CheckAfterSilence) {
            self.check_at = None;
            return;
        }
        let quiet = self.last_live.filter(|_| self.keeps_history).map(|l| l + self.limits.check_after);
        let due = quiet.map_or(due, |quiet| due.max(quiet));
        if now < due {
            self.check_at = Some(due);
            return;
        }
        self.check_now(now);
    }

    /// Asks whether anything was missed. False while a replay is under way.
    pub fn check_now(&mut self, now: Instant) -> bool {
        if self.session.is_some() || self.waiting {
            return false;
        }
        // Also where nothing is asked: a deadline that stays behind would be acted upon without end.
        self.check_at = None;
        if self.profile.replayable && self.checkable {
            self.checking = true;
            self.session = Some(Session::new(self.limits.patience, now));
            self.ask(now);
        }
        true
    }
}
