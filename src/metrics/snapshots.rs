//! Is the index written down?

use super::{Metric, counter, gauge};

pub(super) const SNAPSHOTS: &[Metric] = &[
    counter("kvd_snapshots_total", "Snapshots written.", |s| s.snapshots.written as f64),
    counter("kvd_snapshot_failures_total", "Snapshots that could not be written.", |s| {
        s.snapshots.failed as f64
    }),
    gauge("kvd_snapshot_age_seconds", "Since the last snapshot was begun; -1 = none yet.", |s| {
        s.snapshots.age.map_or(-1.0, |age| age.as_secs_f64())
    }),
    gauge("kvd_snapshot_bytes", "Size of the last snapshot.", |s| s.snapshots.bytes as f64),
    gauge("kvd_snapshot_seconds", "How long the last snapshot took.", |s| s.snapshots.took.as_secs_f64()),
    gauge(
        "kvd_snapshot_pause_seconds",
        "How long a publisher's batches waited for the last snapshot, at most.",
        |s| s.snapshots.longest_pause.as_secs_f64(),
    ),
];
