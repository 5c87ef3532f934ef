//! What a scheduler gets: always an answer, which says where it comes from.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::board::ReplicaStatus;
use crate::{ScoreError, Scores};

/// The answer to a question. There is one within the deadline whatever happens to the replicas.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// What each candidate holds.
    pub scores: Arc<Scores>,
    /// Who says so.
    pub origin: Origin,
}

/// Where an answer comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A replica of kvd answered.
    Kvd {
        /// Which.
        replica: SocketAddr,
        /// Whether it was the second one asked, or a later one.
        hedged: bool,
    },
    /// None did in time; one did answer the same question this long ago.
    LastKnown {
        /// How long ago.
        age: Duration,
        /// Why none answered now.
        why: ScoreError,
    },
    /// None did in time. This is a guess from where prompts that begin alike were routed: it says nothing of
    /// tiers, of evictions, or of what other schedulers did.
    Guess {
        /// Why none answered.
        why: ScoreError,
    },
}

impl Answer {
    /// Whether kvd itself says so, now.
    pub fn is_from_kvd(&self) -> bool {
        matches!(self.origin, Origin::Kvd { .. })
    }
}

/// What a set of replicas has done since it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaStats {
    /// Questions that a replica answered, and of those the ones a second one did.
    pub answered: u64,
    /// See `answered`.
    pub hedged: u64,
    /// Questions that were answered by what was known, and by a guess.
    pub last_known: u64,
    /// See `last_known`.
    pub guessed: u64,
    /// Second questions that were asked.
    pub hedges: u64,
    /// Routings that a replica took, that none did, and that there was no room for.
    pub routings_told: u64,
    /// See `routings_told`.
    pub routings_failed: u64,
    /// See `routings_told`.
    pub routings_dropped: u64,
    /// Every replica.
    pub replicas: Vec<ReplicaStatus>,
}
