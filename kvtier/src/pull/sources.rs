//! Connections that nobody uses just now, and sources that are left alone because they failed.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::fetch::Fetch;
use super::puller::PullConfig;
use super::wire::WireError;
use crate::slot::lock;

/// How long a connection is kept without use: less than a source keeps it.
const KEPT: Duration = Duration::from_secs(30);
/// Sources that are remembered at a time.
const MOST_SOURCES: usize = 1024;

/// Sources, by `host:port`.
#[derive(Debug, Default)]
pub(super) struct Sources {
    idle: Mutex<HashMap<String, Vec<Fetch>>>,
    /// Until when.
    resting: Mutex<HashMap<String, Instant>>,
}

impl Sources {
    /// A connection to `source`, a new one where none is idle that still works.
    pub fn connection(&self, source: &str, config: &PullConfig) -> Result<Fetch, WireError> {
        while let Some(fetch) = self.take(source) {
            if fetch.is_fresh(KEPT) {
                return Ok(fetch);
            }
        }
        Fetch::connect(source, &config.secret, config.insecure, config.patience)
    }

    fn take(&self, source: &str) -> Option<Fetch> {
        lock(&self.idle).get_mut(source).and_then(Vec::pop)
    }

    /// Keeps a connection for the next pull, of at most `most` to its source.
    pub fn keep(&self, source: &str, fetch: Fetch, most: usize) {
        let mut idle = lock(&self.idle);
        if idle.len() >= MOST_SOURCES {
            idle.clear();
        }
        let of_source = idle.entry(source.to_owned()).or_default();
        if of_source.len() < most {
            of_source.push(fetch);
        }
    }

    /// Whether it is left alone now.
    pub fn is_resting(&self, source: &str) -> bool {
        lock(&self.resting).get(source).is_some_and(|until| *until > Instant::now())
    }

    /// It failed.
    pub fn leave_alone(&self, source: &str, rest: Duration) {
        let mut resting = lock(&self.resting);
        if resting.len() >= MOST_SOURCES {
            resting.clear();
        }
        resting.insert(source.to_owned(), Instant::now() + rest);
        lock(&self.idle).remove(source);
    }
}
