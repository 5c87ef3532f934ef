//! What an agent has done.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters, each right by itself.
        #[derive(Debug, Default)]
        pub(super) struct Counts {
            $(pub $name: AtomicU64,)*
        }

        /// What an agent has done, at some moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counts {
            pub fn stats(&self) -> Stats {
                Stats { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }

        impl Stats {
            /// Each with its name.
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

counts! {
    /// Engines that were welcomed.
    sessions,
    /// Sessions that have ended.
    sessions_ended,
    /// Sessions that the agent ended because of what the engine said.
    refused,
    /// Connections that were closed because there were too many.
    turned_away,
    /// Frames read.
    frames,
    /// Keys looked up.
    lookup_keys,
    /// Keys touched.
    touch_keys,
    /// Jobs that were begun.
    jobs,
    /// Jobs that have ended, each once; those of dead engines as well.
    jobs_ended,
    /// Parts of jobs that were not done because their engine was gone.
    parts_dropped,
    /// Parts of jobs that were not done because too much waited.
    parts_busy,
    /// Blocks loaded and right.
    loaded_blocks,
    /// Their bytes.
    loaded_bytes,
    /// Blocks that were asked for and not there, or not right.
    missed_blocks,
    /// Blocks stored.
    stored_blocks,
    /// Their bytes.
    stored_bytes,
    /// Leases given.
    leases,
    /// Leases that ended because their time was up.
    leases_expired,
    /// Leases released that were not held.
    leases_stale,
    /// Regions that were cut while they were in use.
    regions_broken,
}

/// Counts `n` more.
pub(super) fn add(count: &AtomicU64, n: usize) {
    count.fetch_add(n as u64, Ordering::Relaxed);
}
