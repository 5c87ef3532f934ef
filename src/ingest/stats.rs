//! What is counted, per publisher and altogether.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A counter that any thread may add to.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The sum so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Counters of one publisher since it was registered.
#[derive(Debug, Default)]
pub struct Counters {
    /// Live messages that reached its lane.
    pub messages: Counter,
    /// Batches applied.
    pub batches: Counter,
    /// Events applied.
    pub events: Counter,
    /// Events left out: unknown or malformed.
    pub events_skipped: Counter,
    /// Losses noticed.
    pub gaps: Counter,
    /// Engine restarts noticed.
    pub restarts: Counter,
    /// Times that the engine was taken for dead.
    pub deaths: Counter,
    /// Replays asked for.
    pub replays: Counter,
    /// Losses that could not be repaired.
    pub losses: Counter,
    /// Messages that were no batch.
    pub malformed: Counter,
    /// Messages dropped because the queue was full.
    pub dropped: Counter,
    /// Batches without effect: repeated, another's topic, or noise out of order.
    pub ignored: Counter,
    /// Batches applied that name another rank than the registered one.
    pub misranked: Counter,
    /// Copies of blocks that came in.
    pub stored: Counter,
    /// Copies of blocks that left.
    pub removed: Counter,
}

/// Sums over all publishers since the start, those that are gone too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Publishers registered now.
    pub publishers: u64,
    /// Of them, those in state live.
    pub live: u64,
    /// Messages waiting to be applied now.
    pub queued: u64,
    /// Live messages received for some publisher.
    pub messages: u64,
    /// Batches applied.
    pub batches: u64,
    /// Events applied.
    pub events: u64,
    /// Events left out: unknown or malformed.
    pub events_skipped: u64,
    /// Losses noticed.
    pub gaps: u64,
    /// Engine restarts noticed.
    pub restarts: u64,
    /// Times that an engine was taken for dead.
    pub deaths: u64,
    /// Replays asked for.
    pub replays: u64,
    /// Losses that could not be repaired.
    pub losses: u64,
    /// Messages that were no batch.
    pub malformed: u64,
    /// Messages dropped because a queue was full.
    pub dropped: u64,
    /// Batches without effect: repeated, another's topic, or noise out of order.
    pub ignored: u64,
    /// Batches applied that name another rank than the registered one.
    pub misranked: u64,
    /// Copies of blocks that came in.
    pub stored: u64,
    /// Copies of blocks that left.
    pub removed: u64,
    /// Messages on a shared socket whose topic names no publisher of it.
    pub unclaimed: u64,
}

impl Totals {
    /// Adds one publisher's counters.
    pub fn add(&mut self, c: &Counters) {
        self.messages += c.messages.get();
        self.batches += c.batches.get();
        self.events += c.events.get();
        self.events_skipped += c.events_skipped.get();
        self.gaps += c.gaps.get();
        self.restarts += c.restarts.get();
        self.deaths += c.deaths.get();
        self.replays += c.replays.get();
        self.losses += c.losses.get();
        self.malformed += c.malformed.get();
        self.dropped += c.dropped.get();
        self.ignored += c.ignored.get();
        self.misranked += c.misranked.get();
        self.stored += c.stored.get();
        self.removed += c.removed.get();
    }

    /// Adds the counters of another sum.
    pub fn merge(&mut self, other: &Totals) {
        self.messages += other.messages;
        self.batches += other.batches;
        self.events += other.events;
        self.events_skipped += other.events_skipped;
        self.gaps += other.gaps;
        self.restarts += other.restarts;
        self.deaths += other.deaths;
        self.replays += other.replays;
        self.losses += other.losses;
        self.malformed += other.malformed;
        self.dropped += other.dropped;
        self.ignored += other.ignored;
        self.misranked += other.misranked;
        self.stored += other.stored;
        self.removed += other.removed;
    }
}
