//! An engine that began anew, by whatever shows it.

use crate::ingest::testing::{Rig, stored};
use crate::publisher::PublisherState::Live;

#[test]
fn a_sequence_that_goes_back_is_a_new_engine() {
    let mut rig = Rig::new(false);
    rig.live(0..3);
    rig.start = 200.0;
    rig.live([0, 1]);
    assert_eq!(rig.told(), "0@100 1@100 2@100 clear 0@200 1@200");
    assert_eq!((rig.follower.state(), rig.follower.last_seq()), (Live, Some(1)));
    assert_eq!(rig.counters.restarts.get(), 1);
}

#[test]
fn a_restart_whose_first_batches_were_missed_is_replayed() {
    let mut rig = Rig::new(true);
    rig.live(0..6);
    rig.start = 200.0;
    rig.live([2]);
    assert_eq!(rig.asked_from(), Some(0));
    rig.replay(0..3);
    assert_eq!(rig.told(), "0@100 1@100 2@100 3@100 4@100 5@100 clear 0@200 1@200 2@200");
    assert_eq!(rig.follower.state(), Live);
}

#[test]
fn a_restart_that_looks_like_a_gap_shows_in_the_time_of_the_last_batch() {
    let mut rig = Rig::new(true);
    rig.live(0..3);
    rig.start = 200.0;
    rig.live([5]);
    assert_eq!(rig.asked_from(), Some(2));
    rig.replay([2]);
    assert_eq!(rig.asked_from(), Some(0), "the new engine from its start");
    rig.replay(0..6);
    assert_eq!(rig.told(), "0@100 1@100 2@100 clear 0@200 1@200 2@200 3@200 4@200 5@200");
    assert_eq!((rig.follower.state(), rig.follower.is_complete()), (Live, true));
}

#[test]
fn a_replay_of_nothing_where_something_must_be_is_a_new_engine() {
    let mut rig = Rig::new(true);
    rig.live([0, 1, 2, 5]);
    rig.start = 200.0;
    rig.end();
    assert_eq!(rig.asked_from(), Some(0));
    rig.replay([0, 1]);
    rig.end();
    assert_eq!(rig.told(), "0@100 1@100 2@100 clear 0@200 1@200");
    assert_eq!(rig.follower.state(), Live);
}

#[test]
fn numbers_that_fall_within_a_replay_are_a_new_engine() {
    let mut rig = Rig::new(true);
    rig.replay([0, 1, 2]);
    rig.start = 200.0;
    rig.replay([0, 1]);
    rig.end();
    assert_eq!(rig.told(), "0@100 1@100 2@100 clear 0@200 1@200");
}

#[test]
fn another_publisher_id_is_another_life_of_the_engine() {
    let mut rig = Rig::new(false);
    let mut speak = |id: u8, seq: u64, start: f64| {
        let mut frame = seq.to_be_bytes().to_vec();
        frame.extend([id; 16]);
        let message = [&b""[..], &frame, &stored(start, seq)].iter().collect();
        rig.follower.live(message, rig.now, rig.now);
    };
    speak(1, 0, 100.0);
    speak(1, 1, 100.0);
    speak(2, 2, 200.0);
    assert_eq!(rig.told(), "0@100 1@100 clear doubt 2@200");
}
