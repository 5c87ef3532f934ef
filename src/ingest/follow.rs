//! Follows one publisher: what does a message do to its place in the index?
//!
//! ```text
//! live()   ─┐
//! answer() ─┼─▶ Follower ─▶ Sink (apply, clear)
//! timeout()─┘        └────▶ Request (ask for a replay, stop asking)
//! ```
//!
//! Sockets, threads and clocks are outside; messages and the time come in as arguments. This
//! file is the live side, [`super::repair`] what a replay does, [`super::loss`] what is given up and
//! [`super::passing`] what becomes of an engine that is gone, [`super::remarks`] what is only told.
//!
//! What must hold: the index never counts a copy of which a lost batch may have said that it
//! is gone. Where a loss cannot be repaired, what was known is forgotten and learnt anew.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvproto::engine::{Engine, decode};
use kvproto::{Batch, Event, frames};
use tracing::{info, warn};

use super::cursor::{Arrival, Cursor, Seen};
use super::held::{Held, HeldBatch};
use super::message::Message;
use super::repair::FIRST_CHECK;
use super::replay::{Patience, Session};
use super::rules::{Rule, Rules};
use super::stats::Counters;
use super::vital::{Sign, Vital};
use crate::publisher::PublisherState;

/// Where batches go.
pub trait Sink {
    /// Applies a batch; what it says is visible on return.
    fn apply(&mut self, batch: &Batch<'_>);
    /// Forgets everything.
    fn clear(&mut self);
    /// Counts nothing of what is held as certain any more.
    fn doubt(&mut self);
    /// Forgets what has been in doubt.
    fn drop_doubted(&mut self);
    /// All that batch `seq`, which the engine made at `ts`, told is in.
    fn applied(&mut self, seq: u64, ts: f64) {
        let _ = (seq, ts);
    }
    /// Notes that what comes from now on is of another engine than what came before.
    fn begin_life(&mut self) {}
}

/// What the follower wants of the replay socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Ask for all batches from `from` on, and close the socket of an earlier request.
    Ask {
        /// Names the request, for its answers.
        ask: u64,
        /// First number asked for.
        from: u64,
    },
    /// Close the socket.
    Close,
}

/// Who is followed.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Name for logs.
    pub name: String,
    /// Decoder.
    pub engine: Engine,
    /// The only topic that counts, where one was registered.
    pub topic: Option<Vec<u8>>,
    /// Data-parallel rank registered.
    pub rank: u32,
    /// Block size registered.
    pub block_size: Option<u32>,
    /// Whether there is a replay endpoint.
    pub replayable: bool,
    /// Whether its socket is dialled, so that its connection tells whether it is there.
    pub dialled: bool,
}

/// Bounds of a follower.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of a replay.
    pub patience: Patience,
    /// Batches held back.
    pub held_batches: usize,
    /// Bytes held back.
    pub held_bytes: usize,
    /// Silence after which the replay endpoint is asked whether anything was missed.
    pub check_after: Duration,
    /// How long what was held before a loss is remembered.
    pub doubt_for: Duration,
    /// How long there may be no good sign of an engine before it is taken for dead.
    pub dead_after: Duration,
}

/// The state of following one publisher.
pub struct Follower<S> {
    pub(super) sink: S,
    pub(super) profile: Profile,
    pub(super) limits: Limits,
    pub(super) counters: Arc<Counters>,
    pub(super) cursor: Cursor,
    pub(super) held: Held,
    /// Whether all that the engine has stored since its start, or since a clear, is known.
    pub(super) complete: bool,
    /// Whether anything of this publisher was heard.
    pub(super) heard: bool,
    /// Whether any batch was applied, in this life of the engine or an earlier one.
    pub(super) met: bool,
    /// Numbers of live messages behind the cursor that could not be read.
    pub(super) unreadable: BTreeSet<u64>,
    /// Which life of the engine speaks, where its messages say so.
    pub(super) life: Option<[u8; 16]>,
    /// Whether what the engine told before is still being fetched: until then batches are held back.
    pub(super) waiting: bool,
    /// Whether the engine that speaks is known to be the one whose batches are applied: not after a
    /// snapshot, and not after the connection was lost. Until then what comes is held back.
    pub(super) proven: bool,
    /// Whether the engine began anew meanwhile.
    pub(super) began_anew: bool,
    pub(super) session: Option<Session>,
    /// Whether the session only makes sure that nothing was missed.
    pub(super) checking: bool,
    pub(super) next_ask: u64,
    pub(super) request: Option<Request>,
    /// Whether the replay endpoint has ever answered with a batch.
    pub(super) keeps_history: bool,
    /// Whether it can tell that nothing was missed.
    pub(super) checkable: bool,
    /// Whether its socket was connected before.
    was_connected: bool,
    /// When to make sure that nothing was missed.
    pub(super) check_at: Option<Instant>,
    pub(super) last_live: Option<Instant>,
    /// Until when what was held before a loss is remembered.
    pub(super) doubt_until: Option<Instant>,
    pub(super) vital: Vital,
    pub(super) rank_reported: bool,
    pub(super) block_size_reported: bool,
    pub(super) last_error: Option<String>,
    pub(super) rules: Rules,
}

impl<S: Sink> Follower<S> {
    /// Begins to follow; with a replay endpoint, by asking for the history.
    pub fn new(sink: S, profile: Profile, limits: Limits, counters: Arc<Counters>, now: Instant) -> Self {
        let mut follower = Follower::waiting(sink, profile, limits, counters, now);
        follower.begin(now);
        follower
    }

    /// Begins to listen, and holds back what comes until [`resume`](Self::resume) or
    /// [`begin`](Self::begin) says what was applied before.
    pub fn waiting(sink: S, profile: Profile, limits: Limits, counters: Arc<Counters>, now: Instant) -> Self {
        let vital = Vital::new(profile.dialled, limits.dead_after, now);
        Follower {
            sink,
            profile,
            limits,
            counters,
            cursor: Cursor::default(),
            held: Held::default(),
            complete: false,
            heard: false,
            met: false,
            unreadable: BTreeSet::new(),
            life: None,
            waiting: true,
            proven: true,
            began_anew: false,
            session: None,
            checking: false,
            next_ask: 1,
            request: None,
            keeps_history: false,
            checkable: true,
            was_connected: false,
            check_at: None,
            last_live: None,
            doubt_until: None,
            vital,
            rank_reported: false,
            block_size_reported: false,
            last_error: None,
            rules: Rules::default(),
        }
    }

    /// Follows by other rules from now on, for the simulation.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// Where its batches go.
    pub fn sink(&self) -> &S {
        &self.sink
    }

    /// The same, to be changed between two batches.
    pub(super) fn sink_mut(&mut self) -> &mut S {
        &mut self.sink
    }

    /// The live socket is connected again: what was published meanwhile is lost, and it may be another
    /// life of the engine that speaks from now on, even if its next number fits.
    pub fn connected(&mut self, now: Instant) {
        if !self.rules.hold(Rule::Reconnect) {
            return;
        }
        if !self.held.is_empty() {
            // What comes next may be another life's. These come again with the replay that fills the hole.
            self.held.clear();
            self.cursor.forget_live();
        }
        let asked_before = std::mem::replace(&mut self.was_connected, true) && self.session.is_some();
        if self.cursor.last().is_some() {
            self.proven = false;
            self.check_now(now);
        }
        if asked_before {
            // What was asked for before may still come, from the life before.
            self.ask(now);
        }
    }

    /// Takes a sign of whether the engine is there.
    pub fn sign(&mut self, sign: Sign, now: Instant) {
        if self.vital.note(sign, now) {
            self.come_back(now);
        }
    }

    /// Takes a message of the live socket that arrived at `at`.
    pub fn live(&mut self, message: Message, at: Instant, now: Instant) {
        let frames = message.frames();
        let live = match frames::live(&frames) {
            Ok(live) => live,
            Err(e) => return self.malformed(&e),
        };
        if self.profile.topic.as_ref().is_some_and(|topic| topic != live.topic) {
            return self.counters.ignored.add(1);
        }
        let batch = match decode(self.profile.engine, live.payload) {
            Ok(batch) => batch,
            Err(e) => {
                self.remember_unreadable(live.seq);
                return self.malformed(&e);
            }
        };
        if self.vital.heard(now) {
            self.come_back(now);
        }
        self.heard = true;
        self.last_live = Some(now);
        if self.profile.replayable && self.checkable {
            let wait = if self.keeps_history { self.limits.check_after } else { FIRST_CHECK };
            self.check_at.get_or_insert(now + wait);
        }
        self.count_skipped(&batch);
        let seen = Seen { seq: live.seq, ts: batch.ts, empty: batch.is_empty() };
        if let (Some(id), false) = (live.publisher_id, seen.empty)
            && self.life.replace(id).is_some_and(|before| before != id)
        {
            self.restarted("publisher id changed");
        }
        let mut arrival = self.rules.of_live(self.cursor.observe(seen));
        if arrival == Arrival::Restart {
            self.restarted("sequence went back");
            arrival = self.cursor.observe(seen);
        }
        if self.waiting {
            drop(batch);
            drop(frames);
            return self.wait_with(arrival, HeldBatch { seen, message, at });
        }
        if !self.proven && arrival == Arrival::Next && !self.profile.replayable {
            self.give_up_proof(now);
        }
        if !self.proven && arrival == Arrival::Next {
            drop(batch);
            drop(frames);
            return self.hold(HeldBatch { seen, message, at }, 0, now);
        }
        match arrival {
            Arrival::First => {
                self.cursor.took_live(seen);
                self.apply(seen, &batch);
                // The history is known; what a replay would say of it is not needed.
                self.finish();
            }
            Arrival::Next => {
                self.cursor.took_live(seen);
                self.apply(seen, &batch);
            }
            Arrival::Proper => {
                self.cursor.took_live(seen);
                drop(batch);
                drop(frames);
                if let Some(b) = self.held.replace_newest(HeldBatch { seen, message, at }) {
                    self.apply_held(b);
                }
            }
            Arrival::Gap { missing } => {
                if !self.rules.hold(Rule::Hold) {
                    self.sink.apply(&batch);
                }
                drop(batch);
                drop(frames);
                self.hold(HeldBatch { seen, message, at }, missing, now);
            }
            Arrival::Repeat => {
                self.cursor.took_live(seen);
                self.counters.ignored.add(1);
            }
            Arrival::Ignored => self.counters.ignored.add(1),
            // Observed again after forgetting all, nothing can lie before it.
            Arrival::Restart => debug_assert!(false, "a fresh cursor sees no restart"),
        }
    }

    /// Keeps a batch behind a hole and sees to the hole being filled.
    fn hold(&mut self, batch: HeldBatch, missing: u64, now: Instant) {
        let before = self.cursor.live().max(self.cursor.last());
        if before.is_none_or(|b| batch.seen.seq - b > 1) {
            self.counters.gaps.add(1);
            if self.profile.replayable {
                warn!(publisher = %self.profile.name, missing, seq = batch.seen.seq, "batches lost, replaying");
            }
        }
        self.cursor.took_live(batch.seen);
        self.held.push(batch);
        if !self.profile.replayable {
            return self.accept_loss("no replay endpoint", now);
        }
        if self.held.len() > self.limits.held_batches || self.held.bytes() > self.limits.held_bytes {
            return self.accept_loss("more was held back than may be", now);
        }
        self.repair(now);
    }

    /// Applies a batch and moves past it.
    pub(super) fn apply(&mut self, seen: Seen, batch: &Batch<'_>) {
        self.sink.apply(batch);
        self.met = true;
        self.counters.batches.add(1);
        self.counters.events.add(batch.len() as u64);
        self.check_profile(batch);
        // Numbers start at 0 with the engine, and after a clear there is nothing unknown left.
        self.complete = self.complete
            || seen.seq == 0
            || batch.events().any(|e| matches!(e, Event::Cleared(c) if c.tier.is_none()));
        self.cursor.applied(seen);
        self.sink.applied(seen.seq, seen.ts);
        self.forget_unreadable(seen.seq);
    }

    /// Applies a batch that was held back.
    pub(super) fn apply_held(&mut self, held: HeldBatch) {
        let frames = held.message.frames();
        let batch =
            frames::live(&frames).ok().and_then(|live| decode(self.profile.engine, live.payload).ok());
        match batch {
            Some(batch) => self.apply(held.seen, &batch),
            // It was read before it was held back.
            None => debug_assert!(false, "a held batch can be read"),
        }
    }

    /// Applies what was held back as far as there is no hole.
    pub(super) fn drain(&mut self) {
        if !self.proven {
            return;
        }
        while let Some(front) = self.held.front() {
            let known = self.cursor.last().is_some_and(|last| front <= last);
            if !known && self.cursor.next() != Some(front) {
                return;
            }
            let Some(batch) = self.held.pop() else { return };
            if known && self.rules.hold(Rule::Repeat) {
                self.counters.ignored.add(1);
            } else {
                self.apply_held(batch);
            }
        }
    }

    /// The engine began anew: nothing of it is known.
    fn restarted(&mut self, why: &str) {
        self.forget(why);
        self.held.clear();
        self.cursor = Cursor::default();
        self.began_anew = self.waiting;
        self.finish();
    }

    /// Drops what was applied, because another engine has taken over.
    pub(super) fn forget(&mut self, why: &str) {
        info!(publisher = %self.profile.name, why, last_seq = self.cursor.last(), "engine restarted, learning anew");
        self.counters.restarts.add(1);
        self.unlearn(Rule::ForgetOnRestart);
    }

    /// Forgets, by `rule`, what was applied: its life is over.
    pub(super) fn unlearn(&mut self, rule: Rule) {
        self.sink.begin_life();
        if self.rules.hold(rule) {
            self.sink.clear();
            self.doubt_until = None;
        }
        self.unreadable.clear();
        self.complete = false;
        self.proven = true;
        self.checkable = true;
    }

    /// What to do with the replay socket now, if anything.
    pub fn take_request(&mut self) -> Option<Request> {
        self.request.take()
    }

    /// Where the publisher stands.
    pub fn state(&self) -> PublisherState {
        if self.vital.is_dead() && self.met {
            PublisherState::Dead
        } else if !self.heard {
            PublisherState::Connecting
        } else if self.vital.is_away() {
            PublisherState::Unreachable
        } else if self.waiting || (self.session.is_some() && !self.checking) {
            PublisherState::Replaying
        } else if self.complete {
            PublisherState::Live
        } else {
            PublisherState::Partial
        }
    }

    /// Whether the engine's whole history is applied.
    pub fn is_complete(&self) -> bool {
        self.complete && self.held.is_empty() && self.state() == PublisherState::Live
    }

    /// Last batch applied.
    pub fn last_seq(&self) -> Option<u64> {
        self.cursor.last().filter(|_| self.met)
    }

    /// Batches held back, and since when.
    pub fn held(&self) -> (usize, Option<Instant>) {
        (self.held.len(), self.held.oldest())
    }

    /// What went wrong since this was asked last.
    pub fn take_error(&mut self) -> Option<String> {
        self.last_error.take()
    }
}
