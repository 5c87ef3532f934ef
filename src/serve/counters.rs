//! What was asked, and how long did it take?

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counts of both transports together, since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Queries answered, those for unknown models included.
    pub queries: AtomicU64,
    /// Queries refused.
    pub query_errors: AtomicU64,
    /// Queries for a model that nobody is registered for.
    pub unknown_model: AtomicU64,
    /// Time from a checked request to its answer, transport excluded.
    pub query_seconds: Histogram,
    /// Routings announced.
    pub routings: AtomicU64,
    /// Announced routings that ended by their time to live.
    pub routings_expired: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

/// A histogram of durations with fixed bounds.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; Histogram::BOUNDS.len() + 1],
    sum_nanos: AtomicU64,
}

/// A [`Histogram`] as it was at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramCounts {
    /// Observations of at most [`Histogram::BOUNDS`] seconds each, cumulative.
    pub cumulative: [u64; Histogram::BOUNDS.len()],
    /// All observations.
    pub count: u64,
    /// Their sum in seconds.
    pub sum_seconds: f64,
}

impl Histogram {
    /// Upper bounds in seconds, ascending.
    pub const BOUNDS: [f64; 13] =
        [25e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 0.1, 0.5];

    /// Counts one duration.
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let at = Self::BOUNDS.iter().position(|b| seconds <= *b).unwrap_or(Self::BOUNDS.len());
        self.buckets[at].fetch_add(1, Ordering::Relaxed);
        self.sum_nanos.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
    }

    /// The counts now, in Prometheus' cumulative form.
    pub fn counts(&self) -> HistogramCounts {
        let mut count = 0;
        let mut cumulative = [0; Self::BOUNDS.len()];
        for (i, bucket) in self.buckets.iter().enumerate() {
            count += bucket.load(Ordering::Relaxed);
            if let Some(c) = cumulative.get_mut(i) {
                *c = count;
            }
        }
        HistogramCounts {
            cumulative,
            count,
            sum_seconds: self.sum_nanos.load(Ordering::Relaxed) as f64 / 1e9,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_the_count_includes_what_is_beyond_the_last_bound() {
        let h = Histogram::default();
        h.observe(Duration::from_micros(25));
        h.observe(Duration::from_micros(600));
        h.observe(Duration::from_secs(9));
        let c = h.counts();
        assert_eq!(c.cumulative, [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2]);
        assert_eq!(c.count, 3);
        assert!((c.sum_seconds - 9.000625).abs() < 1e-9);
    }
}
