//! Follows one publisher: how does it go on from what was applied before?
//!
//! After a restart, or on a new replica, what an engine told so far comes from a snapshot. The follower
//! listens first and holds back what comes; then it is told where the snapshot ends. What a replay or
//! the batches held back say of the batches around that place shows whether the same engine still
//! speaks; until one of them did, nothing is called certain.

use std::time::Instant;

use tracing::warn;

use super::cursor::{Arrival, Position};
use super::follow::{Follower, Sink};
use super::held::HeldBatch;
use super::replay::Session;
use super::rules::Rule;

impl<S: Sink> Follower<S> {
    /// Where the stream stands, to go on from later.
    pub fn position(&self) -> Position {
        let (ts, newest_ts) = self.cursor.times();
        Position { seq: self.cursor.last(), ts, newest_ts, complete: self.complete, life: self.life }
    }

    /// Whether it still holds everything back.
    pub fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Begins with nothing applied.
    pub fn begin(&mut self, now: Instant) {
        self.waiting = false;
        if self.profile.replayable {
            self.session = Some(Session::new(self.limits.patience, now));
            self.ask(now);
        }
        self.go_on(now);
    }

    /// Goes on after a snapshot that ends at `from` and was put into the index.
    pub fn resume(&mut self, from: &Position, now: Instant) {
        self.waiting = false;
        self.met = from.seq.is_some();
        self.complete = from.complete;
        self.cursor.resume(from);
        let another_id = self.heard && self.life.is_some() && from.life.is_some() && self.life != from.life;
        if self.life.is_none() {
            self.life = from.life;
        }
        match self.compare_held() {
            Some(same) if same && !another_id => {}
            None if !another_id => {
                self.proven = from.seq.is_none() || !self.rules.hold(Rule::Proof);
            }
            Some(_) | None => {
                self.forget("another engine speaks than at the snapshot");
                self.cursor.forget_applied();
            }
        }
        if !self.proven && from.ts.is_none() {
            // The batch it ends with could not be read: there is nothing to compare.
            self.distrust(from.seq.unwrap_or(0), "the snapshot ends with an unreadable batch", now);
        }
        if self.profile.replayable {
            self.session = Some(Session::new(self.limits.patience, now));
            self.ask(now);
        }
        self.go_on(now);
    }

    /// Whether the batches held back that the snapshot has, too, are the same; `None` where there are
    /// none to tell by.
    fn compare_held(&mut self) -> Option<bool> {
        let mut same = None;
        while let Some(front) = self.held.oldest_seen()
            && let Some(last) = self.cursor.last()
            && front.seq <= last
        {
            if self.cursor.is_of_another_life(front) {
                return Some(false);
            }
            let tells = front.seq == last && !front.empty && self.cursor.times().0.is_some();
            same = tells.then_some(true);
            self.held.pop();
            self.counters.ignored.add(1);
        }
        if same.is_none() && self.began_anew && !self.profile.replayable {
            // The snapshot may be of before or after, and nobody can be asked.
            return Some(false);
        }
        same
    }

    /// The last batch of the snapshot came again, the same.
    pub(super) fn is_proven(&mut self) {
        if !self.proven {
            self.proven = true;
            self.drain();
        }
    }

    /// Nobody can be asked whether the same engine still speaks, and another life's next number may fit by
    /// chance.
    pub(super) fn give_up_proof(&mut self, now: Instant) {
        let next = self.cursor.next().unwrap_or(u64::MAX);
        self.distrust(next, "nothing proves the snapshot without a replay endpoint", now);
    }

    /// Applies what was held back, or sees to what is missing before it.
    fn go_on(&mut self, now: Instant) {
        if !self.proven {
            if self.profile.replayable || self.held.is_empty() {
                return;
            }
            // Where it does not even fit, it is a loss like any other.
            if self.held.front() == self.cursor.next() {
                self.give_up_proof(now);
            }
        }
        self.drain();
        if !self.held.is_empty() {
            self.counters.gaps.add(1);
            if !self.profile.replayable {
                self.accept_loss("no replay endpoint", now);
            }
        }
    }

    /// Holds back a live batch of which nothing is known yet.
    pub(super) fn wait_with(&mut self, arrival: Arrival, batch: HeldBatch) {
        let seen = batch.seen;
        match arrival {
            Arrival::Ignored | Arrival::Repeat => return self.counters.ignored.add(1),
            Arrival::Proper => {
                self.cursor.took_live(seen);
                if self.held.replace_newest(batch).is_none() {
                    return;
                }
                return debug_assert!(false, "noise is held back like any batch");
            }
            Arrival::First | Arrival::Next | Arrival::Gap { .. } | Arrival::Restart => {}
        }
        if self.held.len() >= self.limits.held_batches
            || self.held.bytes() + batch.message.cost() > self.limits.held_bytes
        {
            // The snapshot is late. What is dropped here shows as a gap after it.
            warn!(publisher = %self.profile.name, batches = self.held.len(), "more came than may be held back");
            self.counters.dropped.add(self.held.len() as u64);
            self.held.clear();
        }
        self.cursor.took_live(seen);
        self.held.push(batch);
    }
}
