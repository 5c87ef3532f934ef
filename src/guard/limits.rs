//! How much may one client ask?
//!
//! Pure: the time comes in. A client has a bucket that fills at its rate and holds what it may ask in one
//! second; each call takes one out.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::{Client, Refusal};

/// Clients that are known at a time. The idle ones are forgotten first; where all are busy, those that
/// come are refused.
const MOST: usize = 65_536;

/// How often room is made at most.
const CLEAR: Duration = Duration::from_secs(1);

/// What one client may ask; 0 = as much as it likes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Calls at a time. A stream is one.
    pub at_a_time: u32,
    /// Calls per second.
    pub per_second: u32,
}

impl Limit {
    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        *self == Limit::default()
    }
}

/// What clients use.
#[derive(Debug, Default)]
pub struct Used {
    by_client: HashMap<Client, Use>,
    /// When room was last made, which takes long where there are many.
    cleared: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Use {
    under_way: u32,
    left: f64,
    at: Instant,
}

impl Used {
    /// Counts a call that begins.
    pub fn enter(&mut self, client: &Client, limit: &Limit, now: Instant) -> Result<(), Refusal> {
        let full = f64::from(limit.per_second);
        if !self.by_client.contains_key(client) {
            let long_ago = |at: Instant| now.saturating_duration_since(at) >= CLEAR;
            if self.by_client.len() >= MOST && self.cleared.is_none_or(long_ago) {
                self.cleared = Some(now);
                let fills = |u: &Use| limit.per_second > 0 && u.filled(full, now) < full;
                self.by_client.retain(|_, u| u.under_way > 0 || fills(u));
            }
            if self.by_client.len() >= MOST {
                return Err(Refusal::TooOften);
            }
        }
        let fresh = Use { under_way: 0, left: full, at: now };
        let used = self.by_client.entry(client.clone()).or_insert(fresh);
        if limit.at_a_time > 0 && used.under_way >= limit.at_a_time {
            return Err(Refusal::TooManyAtATime);
        }
        if limit.per_second > 0 {
            used.left = used.filled(full, now);
            used.at = now;
            if used.left < 1.0 {
                return Err(Refusal::TooOften);
            }
            used.left -= 1.0;
        }
        used.under_way += 1;
        Ok(())
    }

    /// Counts its end.
    pub fn leave(&mut self, client: &Client) {
        if let Some(used) = self.by_client.get_mut(client) {
            used.under_way = used.under_way.saturating_sub(1);
        }
    }

    /// Clients that are known.
    #[cfg(test)]
    pub fn known(&self) -> usize {
        self.by_client.len()
    }
}

impl Use {
    fn filled(&self, full: f64, now: Instant) -> f64 {
        (self.left + now.saturating_duration_since(self.at).as_secs_f64() * full).min(full)
    }
}
