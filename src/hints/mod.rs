//! Nodes hear which blocks a request that was just routed to them will ask for, so that those are on
//! their way from disk, shared storage or another node to RAM before its engine asks.
//!
//! ```text
//!  RecordRouting ─▶ index: what the node has below RAM, or others have ─▶ queue ─▶ `kvd tier` of the node
//! ```
//!
//! Best effort: what finds the queue full, or a node that does not keep up, is dropped and counted. The
//! index knows 64 bits of a block's name; which block that is, the node finds out, and copies nothing
//! where it cannot be told.

mod send;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kvindex::{Below, HolderId, Query};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::serve::Service;
pub use send::run;

/// Hints that may wait.
const MAX_WAITING: usize = 1024;
/// Blocks in one hint; those from the root on, of a prompt that has more.
const MAX_BLOCKS: usize = 4096;
/// The least time that what was brought up stays for its request.
const LEAST_STAY: Duration = Duration::from_secs(1);

/// What one node is to hear.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hint {
    /// Where its tiers answer, `host:port`.
    to: String,
    model: String,
    /// Where to pull from what is on another node; empty = it is within the node's own reach.
    source: String,
    /// 64 bits of each block's hash, root first.
    hashes: Vec<u64>,
    stay: Duration,
}

/// What became of hints so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// Heard by a node.
    pub sent: AtomicU64,
    /// Left out because too many were waiting.
    pub dropped: AtomicU64,
    /// Not heard: the node could not be reached, refused, or did not answer in time.
    pub failed: AtomicU64,
    /// Blocks that nodes said they bring up.
    pub blocks: AtomicU64,
    /// Blocks that nodes said they pull from others.
    pub pulling: AtomicU64,
}

/// Hints on their way.
#[derive(Debug)]
pub struct Hints {
    /// What became of them.
    pub counts: Counts,
    queue: mpsc::Sender<Hint>,
    /// The other end, until the task that sends takes it.
    waiting: Mutex<Option<mpsc::Receiver<Hint>>>,
}

impl Default for Hints {
    fn default() -> Hints {
        let (queue, waiting) = mpsc::channel(MAX_WAITING);
        Hints { counts: Counts::default(), queue, waiting: Mutex::new(Some(waiting)) }
    }
}

impl Hints {
    fn put(&self, hint: Hint) {
        if self.queue.try_send(hint).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Service {
    /// Lets the nodes of `routed` hear what they are going to be asked for. Does not wait.
    pub(crate) fn hint(&self, query: &Query<'_>, routed: &[HolderId], ttl: Duration) {
        for Below { tiers, at, hashes, .. } in self.index.below(query, routed, MAX_BLOCKS) {
            let to = self.publishers.spec(tiers).and_then(|spec| spec.control_endpoint);
            let source = match at == tiers {
                true => Some(String::new()),
                // A node from which nobody pulls is as good as none.
                false => self.publishers.spec(at).and_then(|spec| spec.pull_endpoint),
            };
            if let (Some(to), Some(source)) = (to, source) {
                let (model, hashes) =
                    (query.model.to_owned(), hashes.into_iter().map(|hash| hash.0).collect());
                self.hints.put(Hint { to, model, source, hashes, stay: ttl.max(LEAST_STAY) });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_the_queue_full_is_dropped_and_counted() {
        let hints = Hints::default();
        let (to, model, source) = ("n:1".to_owned(), "m".to_owned(), String::new());
        let hint = Hint { to, model, source, hashes: vec![1], stay: Duration::from_secs(1) };
        (0..MAX_WAITING + 3).for_each(|_| hints.put(hint.clone()));
        assert_eq!(hints.counts.dropped.load(Ordering::Relaxed), 3);
        let mut waiting = hints.waiting.lock().take().unwrap();
        assert_eq!(waiting.try_recv(), Ok(hint));
    }
}
