//! How much happened?

/// How much happened, over all runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Batches published.
    pub batches: u64,
    /// Things that went wrong.
    pub faults: u64,
    /// Times that a node's answers about an engine were compared.
    pub checks: u64,
    /// Checks of answers that were vouched for.
    pub certain: u64,
    /// Of them, those of something held.
    pub held: u64,
    /// What nodes counted: losses noticed, restarts of engines, replays asked for, losses that nothing
    /// repaired, and messages dropped for want of room.
    pub gaps: u64,
    /// See `gaps`.
    pub restarts: u64,
    /// Engines that nodes took for dead.
    pub deaths: u64,
    /// See `gaps`.
    pub replays: u64,
    /// See `gaps`.
    pub losses: u64,
    /// See `gaps`.
    pub dropped: u64,
    /// Snapshots kept on a disk.
    pub snapshots: u64,
    /// Lanes that went on from one of them.
    pub from_disk: u64,
    /// Lanes that went on from a peer's.
    pub from_peer: u64,
    /// Damaged snapshots noticed.
    pub damaged: u64,
    /// Lanes not live after the faults, before the reset.
    pub partial: u64,
    /// All lanes then.
    pub lanes: u64,
}

impl Tally {
    /// Adds another run's.
    pub fn add(&mut self, other: &Tally) {
        self.batches += other.batches;
        self.faults += other.faults;
        self.checks += other.checks;
        self.certain += other.certain;
        self.held += other.held;
        self.gaps += other.gaps;
        self.restarts += other.restarts;
        self.deaths += other.deaths;
        self.replays += other.replays;
        self.losses += other.losses;
        self.dropped += other.dropped;
        self.snapshots += other.snapshots;
        self.from_disk += other.from_disk;
        self.from_peer += other.from_peer;
        self.damaged += other.damaged;
        self.partial += other.partial;
        self.lanes += other.lanes;
    }
}
