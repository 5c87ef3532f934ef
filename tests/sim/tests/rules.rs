//! Each rule of recovery is needed: without it some seed goes wrong.

use kvd_sim::{LeftOut, many};

/// Seeds tried for each; most show themselves within a few.
const SEEDS: u64 = 3_000;

#[test]
fn without_any_one_rule_some_seed_goes_wrong() {
    let unseen: Vec<LeftOut> =
        LeftOut::all().filter(|&left_out| many(0..SEEDS, left_out, 1).wrong.is_empty()).collect();
    assert!(unseen.is_empty(), "nothing went wrong in {SEEDS} seeds without {unseen:?}");
}
