//! What becomes of a transfer when something happens?
//!
//! Pure: a record, an event and the time give the next record and what to tell others. Reports
//! arrive late, twice and out of order, so an event that comes too late changes nothing, one that
//! skips a state is believed, and a state that is over stays over.
//!
//! ```text
//! planned ─▶ prefilling ─▶ ready ─▶ pulling ─▶ done
//!     └───────────┴──────────┴─────────┴─────▶ failed, expired, cancelled, superseded
//! ```

use std::sync::Arc;
use std::time::Duration;

use super::record::{Cause, Millis, Record, State, Strand};
use super::timers::{Timers, after, heartbeats};
use crate::transfer::types::{Choice, Endpoint, Reason};

/// Something that happened to a transfer.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The prefill pod has the request.
    PrefillStarted,
    /// The prefill pod is done.
    PrefillDone {
        /// How long it keeps the blocks; `None` = as usual.
        lease: Option<Duration>,
        /// What it answered, JSON.
        answer: Option<Arc<str>>,
    },
    /// The pod that pulls, or receives, has the request.
    PullStarted,
    /// All went well.
    Done,
    /// It cannot go on.
    Failed(Cause),
    /// There is another plan in place of the one that cannot go on.
    Replanned(Box<Replan>),
    /// It is still wanted.
    Renewed {
        /// How long the engine keeps the blocks from now on, where that is known.
        lease: Option<Duration>,
    },
    /// Nobody wants it any more.
    Cancelled(Cause),
    /// The blocks that it left behind are free.
    Released,
    /// The index saw that what was to be read is not there any more.
    Stale(Cause),
    /// Time has passed.
    Time,
    /// This process read it back, or took it over, and owns it as `epoch`.
    Owned {
        /// The new owner.
        epoch: u64,
    },
    /// Another replica owns it.
    Superseded,
    /// An owner before this one had come so far.
    Inherited(Box<Record>),
}

/// A plan in place of one that failed.
#[derive(Clone, Debug, PartialEq)]
pub struct Replan {
    /// What went wrong with the last.
    pub because: Cause,
    /// What to do instead.
    pub choice: Choice,
    /// Why.
    pub reason: Reason,
    /// Why, as a sentence.
    pub explanation: Arc<str>,
    /// What comes next.
    pub alternatives: Vec<Choice>,
}

/// What an event came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The transfer from now on.
    pub record: Record,
    /// What watchers are told.
    pub notices: Vec<Notice>,
    /// Blocks that were left behind and are free now: where, and bytes times milliseconds.
    pub unstranded: Vec<(Endpoint, u128)>,
}

/// What watchers are told of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It came into its state.
    State,
    /// It left blocks behind, see [`Record::strand`].
    Stranded,
    /// What its plan wants to read is gone.
    Stale,
    /// The engine's lease ends soon.
    LeaseEnding,
}

/// An event that does not go with the transfer. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is a newer plan.
    #[error("attempt: {got} is over, this is attempt {now}")]
    OldAttempt {
        /// The attempt that was named.
        got: u32,
        /// The one there is.
        now: u32,
    },
    /// There is no such plan here.
    #[error("attempt: {got} is not known here, the last is {now}")]
    UnknownAttempt {
        /// The attempt that was named.
        got: u32,
        /// The one there is.
        now: u32,
    },
    /// Another replica owns it.
    #[error("epoch: another replica owns the transfer as {got}, this one had it as {now}")]
    Owner {
        /// The epoch that was named.
        got: u64,
        /// The one there is.
        now: u64,
    },
    /// Nobody prefills for another in this plan.
    #[error("phase: the plan has no prefill on another pod")]
    NoPrefill,
}

/// Whether a caller's word on `attempt` counts. An older `epoch` is no reason to refuse: after
/// a restart or a take-over callers do not know the new one yet, and it is the owners that it fences.
pub fn fence(record: &Record, attempt: u32, epoch: u64) -> Result<(), Refused> {
    let now = record.attempt;
    if attempt < now {
        Err(Refused::OldAttempt { got: attempt, now })
    } else if attempt > now {
        Err(Refused::UnknownAttempt { got: attempt, now })
    } else if epoch > record.epoch {
        Err(Refused::Owner { got: epoch, now: record.epoch })
    } else {
        Ok(())
    }
}

/// What `event` makes of `record`; `None` = nothing changed.
///
/// # Errors
/// Where the event cannot happen to this transfer.
pub fn step(record: &Record, event: Event, now: Millis, timers: &Timers) -> Result<Option<Step>, Refused> {
    let mut next = Next { record: record.clone(), now, timers, notices: vec![], unstranded: vec![] };
    next.apply(event)?;
    let Next { record: after, notices, unstranded, .. } = next;
    let changed = after != *record || !notices.is_empty();
    Ok(changed.then_some(Step { record: after, notices, unstranded }))
}

/// A record on its way to the next.
struct Next<'a> {
    record: Record,
    now: Millis,
    timers: &'a Timers,
    notices: Vec<Notice>,
    unstranded: Vec<(Endpoint, u128)>,
}

impl Next<'_> {
    fn apply(&mut self, event: Event) -> Result<(), Refused> {
        let live = self.record.live();
        match event {
            Event::PrefillStarted | Event::PrefillDone { .. } if self.record.pinned().is_none() => {
                return Err(Refused::NoPrefill);
            }
            Event::PrefillStarted => self.advance(State::Prefilling),
            Event::PrefillDone { lease, answer } => self.prefill_done(lease, answer),
            Event::PullStarted => self.advance(State::Pulling),
            Event::Done if live => self.end(State::Done, None),
            Event::Failed(cause) if live => self.end(State::Failed, Some(cause)),
            Event::Cancelled(cause) if live => self.end(State::Cancelled, Some(cause)),
            Event::Superseded if live => self.end(State::Superseded, Some(Cause::Superseded)),
            Event::Replanned(replan) if live => self.replan(*replan),
            Event::Renewed { lease } if live => self.renew(lease),
            Event::Stale(cause) if live => self.stale(cause),
            Event::Released => self.unstrand(),
            Event::Time => self.time(),
            Event::Owned { epoch } if live => {
                self.record.epoch = epoch;
                self.record.recovered = true;
            }
            Event::Inherited(before) if live => self.inherit(*before),
            Event::Done
            | Event::Failed(_)
            | Event::Cancelled(_)
            | Event::Superseded
            | Event::Replanned(_)
            | Event::Renewed { .. }
            | Event::Stale(_)
            | Event::Owned { .. }
            | Event::Inherited(_) => {} // it is over, and stays so
        }
        Ok(())
    }

    /// Goes on to `state`, if that lies ahead.
    fn advance(&mut self, state: State) {
        if rank(state) <= rank(self.record.state) {
            return;
        }
        let Record { choice, lease_ends, .. } = &self.record;
        self.record.deadline = self.timers.deadline(state, choice, *lease_ends, self.now);
        self.enter(state);
    }

    fn enter(&mut self, state: State) {
        self.record.state = state;
        self.record.changed_at = self.now;
        self.notices.push(Notice::State);
    }

    fn prefill_done(&mut self, lease: Option<Duration>, answer: Option<Arc<str>>) {
        if self.record.prefill_done {
            return;
        }
        let lease = lease.unwrap_or(self.timers.lease(self.record.connector));
        self.record.prefill_done = true;
        self.record.prefill_answer = answer;
        self.record.lease_ends = Some(after(self.now, lease));
        if self.record.live() {
            self.advance(State::Ready);
        } else if self.leaves_blocks() {
            // Prefill went on after the transfer was over, and nobody comes for what it made.
            self.strand();
            self.forget_texts();
        } else {
            self.forget_texts();
        }
    }

    fn renew(&mut self, lease: Option<Duration>) {
        let Record { state, connector, lease_ends, .. } = self.record;
        if lease.is_some() || lease_ends.is_some() {
            let lease = lease.unwrap_or(self.timers.extension(connector));
            // A heartbeat never shortens what the engine has promised before.
            self.record.lease_ends = lease_ends.max(Some(after(self.now, lease)));
            self.record.warned = false;
        }
        if state == State::Ready {
            let Record { choice, lease_ends, .. } = &self.record;
            self.record.deadline = self.timers.deadline(state, choice, *lease_ends, self.now);
        }
    }

    fn stale(&mut self, cause: Cause) {
        // Once the blocks are on their way, evicting the source's copy harms nobody.
        let waits = matches!(self.record.state, State::Planned | State::Prefilling | State::Ready);
        if waits && self.record.stale.is_none() {
            self.record.stale = Some(cause);
            self.notices.push(Notice::Stale);
        }
    }

    fn replan(&mut self, replan: Replan) {
        let Replan { because, choice, reason, explanation, alternatives } = replan;
        if self.record.attempt >= self.timers.max_attempts {
            return self.end(State::Failed, Some(because));
        }
        let now = self.now;
        let kept = self.record.prefill_done
            && !because.takes_the_blocks()
            && self.record.lease_ends.is_some_and(|ends| now < self.timers.guarded(ends, now))
            && choice.prefill.is_some()
            && choice.prefill == self.record.choice.prefill;
        if !kept {
            if self.record.prefill_done && !because.takes_the_blocks() {
                self.strand();
            }
            self.record.prefill_done = false;
            self.record.prefill_answer = None;
            self.record.lease_ends = None;
        }
        let record = &mut self.record;
        (record.choice, record.reason, record.explanation) = (choice, reason, explanation);
        record.alternatives = alternatives;
        record.attempt += 1;
        record.stale = None;
        record.warned = false;
        let state = if kept { State::Ready } else { State::Planned };
        record.deadline = self.timers.deadline(state, &record.choice, record.lease_ends, now);
        self.enter(state);
    }

    fn inherit(&mut self, mut before: Record) {
        let state = before.came_to();
        if state != before.state {
            before.state = state;
            (before.cause, before.ended_in, before.strand) = (None, None, None);
            let Record { choice, lease_ends, changed_at, .. } = &before;
            before.deadline = self.timers.deadline(state, choice, *lease_ends, *changed_at);
        }
        if before.attempt < self.record.attempt || before.state == State::Superseded {
            return;
        }
        let newer = before.attempt > self.record.attempt;
        let Record { epoch, recovered, overall, .. } = self.record;
        if newer || rank(before.state) > rank(self.record.state) {
            // Prefill may have been reported to either of the two.
            let (done, lease_ends) = (self.record.prefill_done, self.record.lease_ends);
            self.record = Record { epoch, recovered, overall, ..before };
            if done && !newer {
                self.record.prefill_done = true;
                self.record.lease_ends = self.record.lease_ends.max(lease_ends);
            }
            self.notices.push(Notice::State);
        } else if before.prefill_done && !newer && !self.record.prefill_done {
            self.record.prefill_done = true;
            self.record.lease_ends = before.lease_ends;
        }
    }

    fn time(&mut self) {
        if self.record.strand.as_ref().is_some_and(|s| s.until <= self.now) {
            self.unstrand();
        }
        if !self.record.live() {
            return;
        }
        let leased = self.record.lease_ends.is_none_or(|ends| self.now < ends);
        if self.record.overall <= self.now {
            let cause = if leased { Cause::TooLate } else { Cause::LeaseExpired };
            self.end(State::Expired, Some(cause));
        } else if self.record.deadline <= self.now {
            match self.record.state {
                State::Planned => self.end(State::Expired, Some(Cause::NeverStarted)),
                State::Prefilling => self.end(State::Failed, Some(Cause::PrefillTooSlow)),
                State::Ready if leased => self.end(State::Expired, Some(Cause::NeverPulled)),
                State::Ready => self.end(State::Expired, Some(Cause::LeaseExpired)),
                State::Pulling => self.end(State::Failed, Some(Cause::PullTooSlow)),
                State::Done | State::Failed | State::Expired | State::Cancelled | State::Superseded => {}
            }
        } else if self.timers.warn_at(&self.record).is_some_and(|at| at <= self.now) {
            self.record.warned = true;
            self.notices.push(Notice::LeaseEnding);
        }
    }

    fn end(&mut self, state: State, cause: Option<Cause>) {
        let pulled = self.record.state == State::Pulling;
        self.record.ended_in = Some(self.record.state);
        self.record.cause = cause;
        self.record.deadline = 0;
        self.enter(state);
        if self.record.prefill_done && self.leaves_blocks() {
            if pulled && heartbeats(self.record.connector) {
                // The decode pod kept them alive until now, as far as anyone knows.
                let extended = after(self.now, self.timers.extension(self.record.connector));
                self.record.lease_ends = self.record.lease_ends.max(Some(extended));
            }
            self.strand();
        }
        self.forget_texts();
    }

    /// Drops what nobody needs any more once a transfer is over and has left nothing behind: with
    /// the engine's answer, blocks that are left behind can be freed.
    fn forget_texts(&mut self) {
        if !self.record.live() && self.record.strand.is_none() {
            self.record.prefill_answer = None;
            self.record.pass_through = None;
        }
    }

    /// Whether a transfer that ended this way leaves the prefilled blocks behind.
    fn leaves_blocks(&self) -> bool {
        match self.record.state {
            State::Failed | State::Expired | State::Cancelled => {
                self.record.cause.is_none_or(|c| !c.takes_the_blocks())
            }
            State::Planned | State::Prefilling | State::Ready | State::Pulling => false,
            State::Done | State::Superseded => false,
        }
    }

    /// Notes what the prefill pod keeps in vain, if it does.
    fn strand(&mut self) {
        self.unstrand();
        let (Some((pod, bytes)), Some(until)) = (self.record.pinned(), self.record.lease_ends) else {
            return;
        };
        if until > self.now {
            self.record.strand = Some(Strand { pod: pod.clone(), bytes, since: self.now, until });
            self.notices.push(Notice::Stranded);
        }
    }

    /// The blocks left behind are free, or the engine's word for them is over.
    fn unstrand(&mut self) {
        if let Some(Strand { pod, bytes, since, until }) = self.record.strand.take() {
            let ms = self.now.min(until).saturating_sub(since);
            self.unstranded.push((pod, u128::from(bytes) * u128::from(ms)));
            self.forget_texts();
        }
    }
}

/// How far along a state is. Everything that is over is farther than everything that is not.
pub fn rank(state: State) -> u8 {
    match state {
        State::Planned => 0,
        State::Prefilling => 1,
        State::Ready => 2,
        State::Pulling => 3,
        State::Done | State::Failed | State::Expired | State::Cancelled | State::Superseded => 4,
    }
}
