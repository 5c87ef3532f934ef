//! The same seed is the same run, step for step.
//!
//! By itself, because indexes of one process share the list of who is reading: while another run reads,
//! numbers of strands are free again later, and a snapshot is a few bytes longer or shorter.

use kvd_sim::{LeftOut, Trace, run};

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..40 {
        let [first, again] = [0, 1].map(|_| {
            std::thread::spawn(move || run(seed, LeftOut::Nothing, Trace::kept())).join().expect("no panic")
        });
        assert!(first.trace.lines.len() > 100, "seed {seed}: hardly anything happened");
        assert_eq!(first.trace.hash(), again.trace.hash(), "seed {seed}");
        assert_eq!(first.trace.lines, again.trace.lines, "seed {seed}");
    }
}
