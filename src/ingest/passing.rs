//! Follows one publisher: what becomes of an engine that is gone, and of one that comes back?
//!
//! A router must not send a request to a pod for blocks that went with its process. Whether the process
//! is there, [`super::vital`] says; what it held leaves the index when it is taken for dead, and one that
//! comes back is learnt from the start, whoever it is.

use std::time::Instant;

use tracing::{info, warn};

use super::cursor::Cursor;
use super::follow::{Follower, Sink};
use super::rules::Rule;

impl<S: Sink> Follower<S> {
    /// Forgets an engine that is taken for dead from now on.
    pub(super) fn pass_away(&mut self) {
        if !self.met && !self.heard {
            // It was never there. Its history is asked for all the same.
            return;
        }
        warn!(publisher = %self.profile.name, last_seq = self.cursor.last(), "engine is taken for dead");
        self.error("no sign of the engine: what it held is forgotten until it comes back".to_owned());
        self.counters.deaths.add(1);
        self.finish();
        self.unlearn(Rule::ForgetOnDeath);
        self.held.clear();
        self.cursor = Cursor::default();
        self.heard = false;
        self.keeps_history = false;
        self.check_at = None;
        self.last_live = None;
    }

    /// Learns from the start what an engine holds that was taken for dead.
    pub(super) fn come_back(&mut self, now: Instant) {
        if !self.waiting && self.session.is_none() {
            info!(publisher = %self.profile.name, "engine is back, learning anew");
            self.begin(now);
        }
    }
}
