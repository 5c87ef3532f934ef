//! Follows one publisher: what happens when batches cannot be had?
//!
//! A lost batch may have said that blocks are gone, so what was known counts no more; it is told
//! apart, as in doubt, for a while. A batch that arrived and could not be read is another matter: the stream around it is whole.

use std::time::Instant;

use kvproto::engine::BatchError;
use tracing::warn;

use super::follow::{Follower, Sink};
use super::rules::Rule;

/// Unreadable messages whose numbers are remembered.
const MAX_UNREADABLE: usize = 64;

impl<S: Sink> Follower<S> {
    /// Gives up what lies before the batches held back and goes on from them.
    pub(super) fn accept_loss(&mut self, why: &str, now: Instant) {
        self.finish();
        if self.profile.replayable {
            // There may be more than nobody waited for.
            self.check_at = Some(now + self.limits.check_after);
        }
        self.drain();
        while let Some(front) = self.held.front() {
            let start = if self.is_unreadable(front) { Some(front) } else { self.held.last_run() };
            let start = start.unwrap_or(front);
            while self.held.front().is_some_and(|f| f < start) {
                self.held.pop();
            }
            self.lose(start, why, now);
            self.drain();
        }
    }

    /// Whether everything between the last applied batch and `seq` came, from the same life of the
    /// engine, but could not be read.
    fn is_unreadable(&self, seq: u64) -> bool {
        let (true, Some(next)) = (self.proven, self.cursor.next()) else { return false };
        let missing = seq.saturating_sub(next);
        missing > 0 && missing <= MAX_UNREADABLE as u64 && (next..seq).all(|s| self.unreadable.contains(&s))
    }

    /// Moves to just before `seq` without the batches in between.
    pub(super) fn lose(&mut self, seq: u64, why: &str, now: Instant) {
        // What could not be read was not lost on the way: the rest of the stream is whole, and
        // forgetting everything for it would let one odd batch empty the index.
        if !self.is_unreadable(seq) {
            self.distrust(seq, why, now);
        }
        self.complete &= !self.rules.hold(Rule::PartialOnLoss);
        match seq.checked_sub(1) {
            Some(before) => self.cursor.stepped_over(before),
            None => self.cursor.forget_applied(),
        }
    }

    /// Counts nothing that was told before batch `seq` as certain.
    pub(super) fn distrust(&mut self, seq: u64, why: &str, now: Instant) {
        warn!(publisher = %self.profile.name, why, last_seq = self.cursor.last(), seq,
            "batches lost for good, learning anew");
        self.error(format!("batches before {seq} are lost: {why}"));
        self.counters.losses.add(1);
        if self.rules.hold(Rule::ForgetOnLoss) {
            self.sink.doubt();
            self.doubt_until = Some(now + self.limits.doubt_for);
        }
        self.complete &= !self.rules.hold(Rule::PartialOnLoss);
        self.proven = true;
    }

    /// Moves past a batch that nothing can be read of.
    pub(super) fn step_over(&mut self, seq: u64, e: &BatchError) {
        self.malformed(e);
        self.complete = false;
        self.cursor.stepped_over(seq);
        self.forget_unreadable(seq);
    }

    /// Drops the numbers that the cursor has passed.
    pub(super) fn forget_unreadable(&mut self, last: u64) {
        while self.unreadable.first().is_some_and(|&s| s <= last) {
            self.unreadable.pop_first();
        }
    }

    pub(super) fn remember_unreadable(&mut self, seq: u64) {
        if self.unreadable.len() < MAX_UNREADABLE && self.cursor.last().is_none_or(|last| seq > last) {
            self.unreadable.insert(seq);
        }
    }
}
