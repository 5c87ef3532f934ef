//! What is odd about what an engine sends, without anything being done about it?

use std::fmt::Display;

use kvproto::{Batch, Event, Tier};
use tracing::{debug, warn};

use super::follow::{Follower, Sink};

impl<S: Sink> Follower<S> {
    pub(super) fn malformed(&mut self, e: &dyn Display) {
        debug!(publisher = %self.profile.name, error = %e, "message that is no batch");
        self.counters.malformed.add(1);
        self.error(format!("message that is no batch: {e}"));
    }

    pub(super) fn count_skipped(&mut self, batch: &Batch<'_>) {
        let skipped = u64::from(batch.skipped.unknown) + u64::from(batch.skipped.malformed);
        if skipped > 0 {
            self.counters.events_skipped.add(skipped);
            let first = batch.skipped.first.as_deref().unwrap_or("unknown");
            self.error(format!("{skipped} events left out, the first: {first}"));
        }
    }

    /// Reports, once each, what the registration says differently from the events.
    pub(super) fn check_profile(&mut self, batch: &Batch<'_>) {
        if let Some(rank) = batch.rank.filter(|&r| r != self.profile.rank) {
            self.counters.misranked.add(1);
            if !self.rank_reported {
                self.rank_reported = true;
                let registered = self.profile.rank;
                warn!(publisher = %self.profile.name, rank, registered, "batches name another rank");
                self.error(format!("batches name rank {rank}, registered is {registered}"));
            }
        }
        let (false, Some(registered)) = (self.block_size_reported, self.profile.block_size) else { return };
        let other = batch.events().find_map(|e| match e {
            Event::Stored(s) if s.tier == Tier::Gpu && s.block_size != 0 => Some(s.block_size),
            Event::Stored(_) | Event::Removed(_) | Event::Cleared(_) => None,
        });
        if let Some(block_size) = other.filter(|&b| b != registered) {
            self.block_size_reported = true;
            warn!(publisher = %self.profile.name, block_size, registered, "events have another block size");
            self.error(format!("events have block size {block_size}, registered is {registered}"));
        }
    }

    pub(super) fn error(&mut self, text: String) {
        self.last_error = Some(text);
    }
}
