//! How far has asking for missed batches come, and when is it given up?
//!
//! Pure: a [`Session`] lasts from noticing a loss until it is repaired or accepted and asks as
//! often as needed. It says what an answer means and when to ask again; the socket is
//! [`super::reader`]'s and the batches are [`super::follow`]'s.
//!
//! Whatever is held already is asked for once more, as an anchor: an engine that sends another
//! batch under that number is not the one that was followed before. Engines up to vLLM 0.32
//! drop messages in the middle of a long answer and still say that it is whole, so every number
//! is checked and a hole is asked for again.

use std::time::{Duration, Instant};

/// Pause before asking again, doubled by each fruitless attempt.
const PAUSE: Duration = Duration::from_millis(100);
/// How much sooner than a first answer the next one is missed.
const FLOWING: u32 = 8;
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// How patient a session is.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Silence after which it asks again.
    pub timeout: Duration,
    /// Fruitless attempts in a row before the loss is accepted.
    pub attempts: u32,
    /// How long all of it may take.
    pub total: Duration,
}

/// What one replayed batch is to what is applied already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Numbers fall within one answer: the engine began anew.
    Backwards,
    /// Older than what is applied.
    Known,
    /// The last applied batch again, to be compared.
    Anchor,
    /// The one to apply.
    Next,
    /// Batches before it are not there. `kept` is false where the engine keeps nothing older,
    /// so that asking again is of no use.
    Hole {
        /// Whether the missing ones may come when asked for again.
        kept: bool,
    },
}

/// What to do after an attempt that did not repair the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Ask again at once.
    Ask,
    /// Ask again when the deadline has passed.
    Wait,
    /// Accept the loss.
    GiveUp,
}

#[derive(Clone, Copy, Debug)]
enum Waiting {
    /// For the next answer.
    Answer(Instant),
    /// Until it is time to ask again.
    Pause(Instant),
}

/// One effort to learn what was missed.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    patience: Patience,
    /// Names the latest request, from 1; answers to others are stale.
    ask: u64,
    /// Last applied batch when it was asked.
    anchor: Option<u64>,
    /// Last number answered to it.
    answered: Option<u64>,
    /// Whether anything was answered in this session.
    heard: bool,
    /// Whether an earlier request brought something.
    found: bool,
    fruitless: u32,
    since: Instant,
    waiting: Waiting,
}

impl Session {
    /// A session that is to ask at `now`.
    pub fn new(patience: Patience, now: Instant) -> Session {
        Session {
            patience,
            ask: 0,
            anchor: None,
            answered: None,
            heard: false,
            found: false,
            fruitless: 0,
            since: now,
            waiting: Waiting::Pause(now),
        }
    }

    /// Notes request `ask`, made at `now` with `last` applied, and returns the number to ask from.
    pub fn asked(&mut self, ask: u64, last: Option<u64>, now: Instant) -> u64 {
        self.ask = ask;
        self.anchor = last;
        self.answered = None;
        self.waiting = Waiting::Answer(now + self.patience.timeout);
        last.unwrap_or(0)
    }

    /// The latest request.
    pub fn ask(&self) -> u64 {
        self.ask
    }

    /// Whether anything was answered so far.
    pub fn heard(&self) -> bool {
        self.heard
    }

    /// Whether the latest request was for a batch that must exist, and got nothing.
    pub fn anchor_is_gone(&self) -> bool {
        self.anchor.is_some() && self.answered.is_none()
    }

    /// Whether it waits to ask again.
    pub fn is_pausing(&self) -> bool {
        matches!(self.waiting, Waiting::Pause(_))
    }

    /// When something is to be done.
    pub fn deadline(&self) -> Instant {
        match self.waiting {
            Waiting::Answer(at) | Waiting::Pause(at) => at,
        }
    }

    /// Notes that batch `seq` was answered while `last` is applied, and says what it is.
    pub fn answer(&mut self, seq: u64, last: Option<u64>, now: Instant) -> Answer {
        // Batches follow each other closely: when they stop coming, the rest and the end were
        // dropped, and what came already need not be asked for again.
        let flowing = self.brought_something(last);
        self.waiting = Waiting::Answer(now + self.patience.timeout / if flowing { FLOWING } else { 1 });
        if !self.heard {
            // An engine that starts long after it was registered has all its time from here on.
            self.since = now;
            self.heard = true;
        }
        let before = self.answered.replace(seq);
        if before.is_some_and(|b| seq <= b) {
            return Answer::Backwards;
        }
        match last {
            Some(last) if seq < last => Answer::Known,
            Some(last) if seq == last => Answer::Anchor,
            // Where the last applied batch is kept no more, nothing tells whose the next one is.
            Some(last) if seq - last == 1 && before.is_none() => Answer::Hole { kept: false },
            Some(last) if seq - last == 1 => Answer::Next,
            None if seq == 0 => Answer::Next,
            _ => Answer::Hole { kept: before.is_some() },
        }
    }

    /// Notes that the engine said it has no more.
    pub fn ended(&mut self) {
        self.heard = true;
    }

    /// An attempt ended without repairing the loss; `last` is applied by now. `patient` asks
    /// for ever: nothing waits for the answer.
    pub fn failed(&mut self, last: Option<u64>, patient: bool, now: Instant) -> Verdict {
        if !patient && self.is_overdue(now) {
            return Verdict::GiveUp;
        }
        if self.brought_something(last) {
            self.fruitless = 0;
            self.found = true;
            return Verdict::Ask;
        }
        self.fruitless += 1;
        if !patient && self.fruitless >= self.patience.attempts {
            return Verdict::GiveUp;
        }
        let pause = PAUSE.saturating_mul(1 << (self.fruitless - 1).min(16)).min(PAUSE_MAX);
        self.waiting = Waiting::Pause(now + pause);
        Verdict::Wait
    }

    /// Whether the latest request brought something, with `last` applied by now.
    pub fn brought_something(&self, last: Option<u64>) -> bool {
        last != self.anchor
    }

    /// Whether any request of this session brought something, with `last` applied by now.
    pub fn has_found(&self, last: Option<u64>) -> bool {
        self.found || self.brought_something(last)
    }

    /// Takes no answer for the latest request's any more.
    pub fn disown(&mut self) {
        self.ask = 0;
    }

    /// Whether it has taken longer than it may, however much was answered.
    pub fn is_overdue(&self, now: Instant) -> bool {
        now.duration_since(self.since) >= self.patience.total
    }

    /// Starts counting anew: someone waits for the answer from now on.
    pub fn urge(&mut self, now: Instant) {
        self.fruitless = 0;
        self.since = now;
        if let Waiting::Pause(at) = self.waiting {
            self.waiting = Waiting::Pause(at.min(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience =
        Patience { timeout: Duration::from_secs(2), attempts: 3, total: Duration::from_secs(60) };

    fn asked(last: Option<u64>) -> (Session, Instant) {
        let now = Instant::now();
        let mut s = Session::new(PATIENCE, now);
        s.asked(1, last, now);
        (s, now)
    }

    #[test]
    fn it_asks_from_the_last_applied_batch_or_from_the_start() {
        let now = Instant::now();
        let mut s = Session::new(PATIENCE, now);
        assert_eq!(s.asked(1, None, now), 0);
        assert_eq!(s.asked(2, Some(41), now), 41);
    }

    #[test]
    fn answers_are_told_apart_by_their_numbers() {
        let (mut s, now) = asked(Some(5));
        assert_eq!(s.answer(3, Some(5), now), Answer::Known);
        assert_eq!(s.answer(5, Some(5), now), Answer::Anchor);
        assert_eq!(s.answer(6, Some(5), now), Answer::Next);
        assert_eq!(s.answer(9, Some(6), now), Answer::Hole { kept: true });
        assert_eq!(s.answer(2, Some(6), now), Answer::Backwards);
    }

    #[test]
    fn a_history_that_begins_later_than_asked_is_not_asked_for_again() {
        let (mut s, now) = asked(None);
        assert_eq!(s.answer(5, None, now), Answer::Hole { kept: false });
        let (mut s, now) = asked(Some(2));
        assert_eq!(s.answer(5, Some(2), now), Answer::Hole { kept: false });
    }

    #[test]
    fn answers_that_stop_coming_are_missed_sooner_than_those_that_never_came() {
        let (mut s, now) = asked(Some(5));
        s.answer(5, Some(5), now);
        assert_eq!(s.deadline(), now + PATIENCE.timeout);
        s.answer(6, Some(5), now);
        assert_eq!(s.deadline(), now + PATIENCE.timeout);
        s.answer(7, Some(6), now);
        assert_eq!(s.deadline(), now + PATIENCE.timeout / 8);
    }

    #[test]
    fn attempts_that_bring_something_are_not_counted() {
        let (mut s, now) = asked(Some(5));
        for last in 6..100 {
            assert_eq!(s.failed(Some(last), false, now), Verdict::Ask);
            s.asked(last, Some(last), now);
        }
    }

    #[test]
    fn fruitless_attempts_pause_longer_each_time_and_end() {
        let (mut s, now) = asked(None);
        assert_eq!(s.failed(None, false, now), Verdict::Wait);
        let first = s.deadline();
        assert_eq!(s.failed(None, false, now), Verdict::Wait);
        assert!(s.deadline() > first && first > now);
        assert_eq!(s.failed(None, false, now), Verdict::GiveUp);
    }

    #[test]
    fn nobody_waiting_means_asking_for_ever_until_urged() {
        let (mut s, now) = asked(None);
        for _ in 0..100 {
            assert_eq!(s.failed(None, true, now), Verdict::Wait);
        }
        assert!(s.deadline() <= now + PAUSE_MAX);
        s.urge(now);
        assert_eq!(s.deadline(), now);
        assert_eq!(s.failed(None, false, now), Verdict::Wait);
    }

    #[test]
    fn an_endless_answer_is_cut_off() {
        let (mut s, now) = asked(Some(1));
        assert_eq!(s.failed(Some(2), false, now + PATIENCE.total), Verdict::GiveUp);
    }
}
