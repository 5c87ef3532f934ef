//! Where a publisher stands, for anyone to read without stopping it.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64};
use std::time::{Duration, Instant};

use std::sync::LazyLock;

use crate::publisher::{Freshness, PublisherState};

/// Instants are kept as the time since this one.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// An instant, or none.
#[derive(Debug, Default)]
pub struct Stamp(AtomicU64);

impl Stamp {
    /// Sets it.
    pub fn set(&self, at: Option<Instant>) {
        // Who reads that nothing waits sees what was applied before.
        self.0.store(at.map_or(0, encode), Release);
    }

    /// Sets it unless it is set.
    pub fn set_if_none(&self, at: Instant) {
        // Whether another thread was faster does not matter: then it is set.
        let _ = self.0.compare_exchange(0, encode(at), Relaxed, Relaxed);
    }

    /// Reads it.
    pub fn get(&self) -> Option<Instant> {
        let nanos = self.0.load(Acquire).checked_sub(1)?;
        Some(*START + Duration::from_nanos(nanos))
    }
}

/// Nanoseconds since the start plus one, so that 0 is none.
fn encode(at: Instant) -> u64 {
    at.saturating_duration_since(*START).as_nanos() as u64 + 1
}

/// What a lane shows of itself. Each value is right by itself; together they may be from
/// before and after a batch.
#[derive(Debug, Default)]
pub struct Gauges {
    state: AtomicU8,
    complete: AtomicBool,
    /// One more than the last sequence number, 0 where there is none.
    next_seq: AtomicU64,
    held: AtomicU64,
    /// When the last message arrived.
    pub last_message: Stamp,
    /// When the oldest message not yet applied arrived.
    pub oldest_queued: Stamp,
}

impl Gauges {
    /// Sets what a follower knows.
    pub fn set(&self, state: PublisherState, complete: bool, last_seq: Option<u64>, held: usize) {
        self.state.store(state as u8, Relaxed);
        self.complete.store(complete, Relaxed);
        self.next_seq.store(last_seq.map_or(0, |s| s.saturating_add(1)), Relaxed);
        self.held.store(held as u64, Relaxed);
    }

    /// Batches held back.
    pub fn held(&self) -> u64 {
        self.held.load(Relaxed)
    }

    /// How far answers about this publisher can be trusted.
    pub fn freshness(&self) -> Freshness {
        Freshness {
            state: state_of(self.state.load(Relaxed)),
            complete: self.complete.load(Relaxed),
            last_seq: self.next_seq.load(Relaxed).checked_sub(1),
            last_message: self.last_message.get(),
            oldest_queued: self.oldest_queued.get(),
        }
    }
}

fn state_of(n: u8) -> PublisherState {
    PublisherState::ALL.into_iter().find(|s| *s as u8 == n).unwrap_or(PublisherState::Connecting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_comes_back_as_it_was_set() {
        let stamp = Stamp::default();
        assert_eq!(stamp.get(), None);
        let at = *START + Duration::from_millis(7);
        stamp.set_if_none(at);
        stamp.set_if_none(at + Duration::from_secs(1));
        assert_eq!(stamp.get(), Some(at));
        stamp.set(None);
        assert_eq!(stamp.get(), None);
    }

    #[test]
    fn what_was_set_is_shown() {
        let gauges = Gauges::default();
        assert_eq!(
            (gauges.freshness().state, gauges.freshness().last_seq),
            (PublisherState::Connecting, None)
        );
        for state in PublisherState::ALL {
            gauges.set(state, true, Some(0), 3);
            let shown = gauges.freshness();
            assert_eq!(
                (shown.state, shown.complete, shown.last_seq, gauges.held()),
                (state, true, Some(0), 3)
            );
        }
    }
}
