//! What a second of somebody else's time is worth, and what is too little to bother.

use std::time::Duration;

/// How the planner weighs what a choice does to others against what it does to this request.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// A prefix is not pulled for fewer tokens than these: vLLM's own floor.
    pub min_pull_tokens: u32,
    /// Nothing is moved that saves less.
    pub min_gain: Duration,
    /// Moving is charged this part more than it is expected to take.
    pub margin: f64,
    /// Time that is lost when a transfer fails, besides computing after all.
    pub failure: Duration,
    /// Price of a second of work on a pod that is busy half of its time. Whoever comes while it
    /// is done waits for it, the more the busier the pod is.
    pub crowd: f64,
    /// Price of holding up one running request for a second by a prefill beside it.
    pub stall: f64,
    /// Price of a place beside one running request: a batch that is larger is slower.
    pub seat: Duration,
    /// Price of storing a token where it is not yet, as part of computing it, times the odds that this
    /// prompt's tokens come again: each takes the place of one that somebody may come back for.
    pub keep: f64,
    /// How long a request keeps its room in a decode pod's cache, about.
    pub stay: Duration,
    /// Above this expected time everyone counts as busy.
    pub give_up: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            min_pull_tokens: 64,
            min_gain: Duration::from_millis(2),
            margin: 0.1,
            failure: Duration::from_secs(2),
            crowd: 0.3,
            stall: 0.2,
            seat: Duration::from_millis(5),
            keep: 0.1,
            stay: Duration::from_secs(10),
            give_up: Duration::from_secs(120),
        }
    }
}
