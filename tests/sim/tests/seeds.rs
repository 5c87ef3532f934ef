//! Many seeds: nothing that is vouched for is wrong, and in the end everything is right.

use kvd_sim::{LeftOut, many};

/// Seeds of an ordinary test run; `cargo run --release -p kvd-sim -- seeds 10000` is the long one.
const SEEDS: u64 = 5_000;

#[test]
fn whatever_goes_wrong_answers_are_right_or_say_that_they_may_not_be() {
    let found = many(0..SEEDS, LeftOut::Nothing, 5);
    for (seed, wrong) in &found.wrong {
        println!("{wrong}\nseen again by: cargo run -p kvd-sim -- trace {seed}\n");
    }
    assert!(found.wrong.is_empty(), "{} seeds went wrong", found.wrong.len());
    // A simulation in which nothing happens finds nothing.
    let t = found.tally;
    let often = [
        t.faults,
        t.held,
        t.gaps,
        t.restarts,
        t.deaths,
        t.losses,
        t.dropped,
        t.from_disk,
        t.from_peer,
        t.damaged,
    ];
    assert!(often.iter().all(|&n| n > SEEDS / 50), "too tame: {t:#?}");
    assert!(t.certain * 3 > t.checks, "hardly anything is vouched for: {t:#?}");
}
