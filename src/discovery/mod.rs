//! Which engines are there, without anybody registering them?
//!
//! ```text
//! kubernetes.rs ─ pods.rs ─┐ words                 changes
//!   │ which pods  (a pod)  ├──────▶ board.rs ─▶ reconcile.rs ─▶ ingest::Publishers
//!   │ pool.rs, service.rs  │     what is seen    what to do
//!   └ watch.rs (API server)│
//! file.rs ─────────────────┘
//! ```
//!
//! A *source* (Kubernetes, a file) has *feeds*, each of which says all that it sees and then what changes.
//! The board adds that up; reconciling compares it with who is followed, and is pure: whatever was missed
//! or repeated on the way, the next pass puts it right. What people registered is left alone, and what was
//! discovered goes with what it was seen as, also when that went while kvd was away.

mod board;
mod file;
mod kubernetes;
mod pods;
mod pool;
mod reconcile;
mod run;
mod service;
#[cfg(test)]
mod tests;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use serde::Serialize;

pub use pods::{PodRules, Select};
pub use pool::PoolGroup;
pub use run::run;

use crate::publisher::Source;

/// Where to look.
#[derive(Clone, Debug, Default)]
pub struct DiscoveryConfig {
    /// A file of publishers that is read again when it changes.
    pub file: Option<PathBuf>,
    /// How to reach the cluster; `None` = as a pod of it does.
    pub kubeconfig: Option<PathBuf>,
    /// Pods to look for; none = the cluster is not spoken to.
    pub pods: Vec<PodRules>,
}

impl DiscoveryConfig {
    fn looks_at(&self, source: Source) -> bool {
        match source {
            Source::Kubernetes => !self.pods.is_empty(),
            Source::File => self.file.is_some(),
        }
    }
}

/// What is known of discovery from outside.
#[derive(Debug, Default)]
pub struct Discovery {
    looks_at: Vec<Source>,
    /// Whether every feed has said all that it sees, and that is followed.
    synced: AtomicBool,
    /// Counts.
    pub counts: Counts,
    shown: Mutex<Shown>,
}

/// What happened, counted.
#[derive(Debug, Default)]
pub struct Counts {
    /// Publishers followed because they were seen, or seen otherwise than before.
    pub followed: AtomicU64,
    /// Publishers left because they are not seen any more, or are other engines now.
    pub left: AtomicU64,
    /// Attempts to follow that failed.
    pub failed: AtomicU64,
    /// Times that a feed could not be read.
    pub errors: AtomicU64,
    /// Times that a feed said anew all that it sees.
    pub listed: AtomicU64,
}

impl Counts {
    fn add(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Relaxed);
    }
}

/// What discovery sees, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// Each place that is looked at.
    pub feeds: Vec<FeedShown>,
    /// Publishers that are wanted.
    pub publishers: usize,
    /// What was seen and cannot be followed, and why.
    pub refused: Vec<Refused>,
}

/// One place that is looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FeedShown {
    /// Of which source.
    pub source: Source,
    /// The namespace and what selects there, or the file.
    pub name: String,
    /// Whether it has said all that it sees.
    pub complete: bool,
    /// Pods, endpoints, pools, or the file.
    pub objects: usize,
    /// Why it cannot be read at the moment.
    pub error: Option<String>,
}

/// Something seen that cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Refused {
    /// The pod, or the file.
    pub object: String,
    /// What is wrong, and what would be right.
    pub why: String,
}

impl Discovery {
    /// Of what `config` looks at, before anything was seen.
    pub fn new(config: &DiscoveryConfig) -> Arc<Discovery> {
        let all = [Source::Kubernetes, Source::File];
        let looks_at: Vec<_> = all.into_iter().filter(|s| config.looks_at(*s)).collect();
        let synced = AtomicBool::new(looks_at.is_empty());
        Arc::new(Discovery { looks_at, synced, ..Discovery::default() })
    }

    /// Whether publishers are looked for there.
    pub fn looks_at(&self, source: Source) -> bool {
        self.looks_at.contains(&source)
    }

    /// Whether all that there was at the start was seen and is followed.
    pub fn is_synced(&self) -> bool {
        self.synced.load(Relaxed)
    }

    /// What is seen.
    pub fn shown(&self) -> Shown {
        self.shown.lock().clone()
    }
}
