//! Messages that say nothing, or cannot be read.

use crate::ingest::testing::{Rig, noise, stored};
use crate::publisher::PublisherState::{Live, Partial};

#[test]
fn garbage_beside_a_valid_stream_changes_nothing() {
    let mut rig = Rig::new(false);
    for seq in 0..5 {
        let good = stored(100.0, seq);
        rig.live_raw(u64::MAX, b"\xc1\xc1");
        rig.live_raw(seq, &good[..good.len() / 2]);
        rig.live_raw(7_000, &noise(1.0));
        rig.live_raw(0, &noise(1.0));
        rig.live_raw(seq, &good);
        rig.live_raw(seq, b"");
    }
    let told = rig.told();
    let applied: Vec<&str> = told.split(' ').filter(|t| *t != "none").collect();
    assert_eq!(applied, ["0@100", "1@100", "2@100", "3@100", "4@100"]);
    assert_eq!((rig.counters.restarts.get(), rig.counters.losses.get()), (0, 0));
    assert_eq!((rig.follower.state(), rig.counters.malformed.get()), (Live, 15));
}

#[test]
fn noise_with_the_next_number_is_followed_by_the_batch_itself() {
    let mut rig = Rig::new(false);
    rig.live([0]);
    rig.live_raw(1, &noise(101.0));
    rig.live(1..3);
    assert_eq!(rig.told(), "0@100 none 1@100 2@100");
}

#[test]
fn noise_among_held_back_batches_is_replaced_by_the_batch_itself() {
    let mut rig = Rig::new(true);
    rig.live([0, 3]);
    rig.live_raw(4, &noise(104.0));
    rig.live([4, 5]);
    rig.replay([0, 1, 2]);
    assert_eq!(rig.told(), "0@100 1@100 2@100 3@100 4@100 5@100");
}

#[test]
fn a_batch_that_cannot_be_read_even_when_replayed_is_stepped_over() {
    let mut rig = Rig::new(true);
    rig.live([0]);
    rig.live_raw(1, b"\xc1");
    rig.live([2]);
    assert_eq!(rig.asked_from(), Some(0));
    rig.replay([0]);
    rig.replay_raw(1, b"\xc1");
    assert_eq!(rig.told(), "0@100 2@100");
    assert_eq!((rig.follower.state(), rig.counters.losses.get()), (Partial, 0));
}

#[test]
fn without_a_replay_a_batch_that_cannot_be_read_is_stepped_over_too() {
    let mut rig = Rig::new(false);
    rig.live([0]);
    rig.live_raw(1, b"\xc1");
    rig.live([2]);
    assert_eq!(rig.told(), "0@100 2@100");
    assert_eq!(rig.follower.state(), Partial);
}
