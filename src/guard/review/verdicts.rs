//! What was said of tokens a moment ago?
//!
//! Pure: the time comes in. Tokens are kept by their digests. What was refused is kept apart, so that
//! invented tokens do not drive out those that are good.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::Verdict;
use crate::guard::tokens::Digest;

/// Tokens of each sort that are known at a time. What does not fit is asked for again.
const MOST: usize = 8192;

/// Whether to ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// Not yet.
    Young,
    /// It holds, and is better asked for before it does not.
    Old,
}

/// What was said, while it holds.
#[derive(Debug)]
pub struct Verdicts {
    ttl: Duration,
    good: HashMap<Digest, (Verdict, Instant)>,
    bad: HashMap<Digest, (Verdict, Instant)>,
}

impl Verdicts {
    /// That hold for `ttl`.
    pub fn new(ttl: Duration) -> Verdicts {
        Verdicts { ttl, good: HashMap::new(), bad: HashMap::new() }
    }

    /// What holds of a token.
    pub fn get(&self, digest: &Digest, now: Instant) -> Option<(Verdict, Age)> {
        let found = self.good.get(digest).map(|g| (g, true));
        let ((verdict, at), is_good) = found.or_else(|| self.bad.get(digest).map(|b| (b, false)))?;
        let age = now.saturating_duration_since(*at);
        // Who is refused has no reason to be asked about before it has to be.
        let age = match age {
            over if over >= self.ttl => return None,
            old if is_good && old >= self.ttl / 2 => Age::Old,
            _ => Age::Young,
        };
        Some((*verdict, age))
    }

    /// Keeps what is said now.
    pub fn put(&mut self, digest: Digest, verdict: Verdict, now: Instant) {
        let ttl = self.ttl;
        let (to, from) = match verdict {
            Verdict::Known(_) => (&mut self.good, &mut self.bad),
            Verdict::Unknown => (&mut self.bad, &mut self.good),
        };
        from.remove(&digest);
        if to.len() >= MOST && !to.contains_key(&digest) {
            to.retain(|_, (_, at)| now.saturating_duration_since(*at) < ttl);
            if to.len() >= MOST {
                return;
            }
        }
        to.insert(digest, (verdict, now));
    }

    /// Tokens that are known.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.good.len() + self.bad.len()
    }
}
