//! Many runs, on as many threads as there are processors.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

use crate::run::run;
use crate::trace::Trace;
use crate::world::{LeftOut, Tally};

/// What came of many runs.
#[derive(Debug, Default)]
pub struct Found {
    /// Runs made.
    pub runs: u64,
    /// What happened in them.
    pub tally: Tally,
    /// What was wrong, by seed in rising order.
    pub wrong: Vec<(u64, String)>,
}

/// Runs every seed of `seeds` with `left_out`, or until `enough` of them were wrong.
pub fn many(seeds: Range<u64>, left_out: LeftOut, enough: usize) -> Found {
    let next = AtomicU64::new(seeds.start);
    let found = Mutex::new(Found::default());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Relaxed);
            if seed >= seeds.end {
                return;
            }
            let outcome = run(seed, left_out, Trace::default());
            let mut found = found.lock().expect("no run panics while it is held");
            found.runs += 1;
            match outcome.result {
                Ok(tally) => found.tally.add(&tally),
                Err(e) => found.wrong.push((seed, e)),
            }
            if found.wrong.len() >= enough {
                return;
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let mut found = found.into_inner().expect("no run panics while it is held");
    found.wrong.sort_unstable();
    found
}
