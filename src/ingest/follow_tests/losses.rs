//! Batches that are lost, and replays that bring them, or do not.

use crate::ingest::testing::Rig;
use crate::publisher::PublisherState::{Connecting, Live, Partial, Replaying};

#[test]
fn a_gap_is_healed_by_a_replay_from_the_last_batch() {
    let mut rig = Rig::new(true);
    rig.live([0, 1, 4, 5]);
    assert_eq!((rig.asked_from(), rig.follower.state()), (Some(1), Replaying));
    assert!(!rig.follower.is_complete());
    rig.replay(1..4);
    assert_eq!(rig.told(), "0@100 1@100 2@100 3@100 4@100 5@100");
    assert_eq!((rig.counters.gaps.get(), rig.counters.losses.get()), (1, 0));
    assert_eq!((rig.follower.state(), rig.follower.is_complete()), (Live, true));
}

#[test]
fn without_a_replay_endpoint_a_gap_doubts_what_was_known() {
    let mut rig = Rig::new(false);
    rig.live([0, 1, 4, 5]);
    assert_eq!(rig.told(), "0@100 1@100 doubt 4@100 5@100");
    assert_eq!(rig.follower.state(), Partial);
}

#[test]
fn what_is_in_doubt_is_dropped_in_the_end() {
    let mut rig = Rig::new(false);
    rig.live([0, 1, 4]);
    rig.wait();
    assert_eq!(rig.told(), "0@100 1@100 doubt 4@100 settle");
    assert_eq!(rig.follower.deadline(), None);
}

/// vLLM 0.32 drops messages in the middle of a deep replay and still says it is whole.
#[test]
fn a_hole_inside_a_replay_is_asked_for_again() {
    let mut rig = Rig::new(true);
    rig.live([9]);
    rig.replay([0, 1, 2, 5]);
    assert_eq!(rig.asked_from(), Some(2), "at once, from the last that came");
    rig.replay([2, 3, 4, 7]);
    assert_eq!(rig.asked_from(), Some(4));
    rig.replay(4..9);
    assert_eq!(rig.told(), "0@100 1@100 2@100 3@100 4@100 5@100 6@100 7@100 8@100 9@100");
    assert_eq!((rig.follower.state(), rig.follower.is_complete()), (Live, true));
}

#[test]
fn a_replay_that_ends_too_early_is_asked_for_again() {
    let mut rig = Rig::new(true);
    rig.live([0, 5]);
    rig.replay([0, 1, 2]);
    rig.end();
    assert_eq!(rig.asked_from(), Some(2));
    rig.replay(2..5);
    assert_eq!(rig.told(), "0@100 1@100 2@100 3@100 4@100 5@100");
}

#[test]
fn a_hole_that_every_replay_has_is_accepted_in_the_end() {
    let mut rig = Rig::new(true);
    rig.live([0, 5]);
    for _ in 0..2 {
        rig.replay([0, 2]);
        assert_eq!(rig.asked_from(), None, "its answers are of no use any more");
        rig.wait();
    }
    rig.replay([0, 2, 3, 4]);
    assert_eq!(rig.told(), "0@100 doubt 2@100 3@100 4@100 5@100");
    assert_eq!((rig.follower.state(), rig.asked_from()), (Partial, None));
}

#[test]
fn a_replay_that_never_answers_is_given_up() {
    let mut rig = Rig::new(true);
    rig.live([0, 3, 4]);
    let mut waits = 0;
    while rig.asked_from().is_some() {
        rig.wait();
        waits += 1;
    }
    assert_eq!(waits, 5, "three attempts and two pauses");
    assert_eq!(rig.told(), "0@100 doubt 3@100 4@100");
    assert_eq!(rig.follower.state(), Partial);
    rig.live([5]);
    assert_eq!(rig.told(), "5@100");
}

#[test]
fn an_engine_that_is_not_up_yet_is_asked_until_it_is() {
    let mut rig = Rig::new(true);
    for _ in 0..100 {
        rig.wait();
    }
    assert_eq!(rig.follower.state(), Connecting);
    if rig.asked_from().is_none() {
        rig.wait();
    }
    rig.replay([0, 1]);
    rig.end();
    assert_eq!(rig.told(), "0@100 1@100");
    assert_eq!(rig.follower.state(), Live);
}

#[test]
fn an_endless_replay_is_cut_off() {
    let mut rig = Rig::new(true);
    rig.live([0, 1_000_000]);
    rig.replay([0]);
    let mut seq = 1;
    while rig.asked_from().is_some() {
        rig.now += std::time::Duration::from_secs(1);
        rig.replay([seq]);
        seq += 1;
    }
    assert_eq!(seq, 61);
    assert!(rig.told().ends_with("60@100 doubt 1000000@100"), "as long as it is patient");
}

#[test]
fn more_than_may_be_held_back_gives_the_replay_up() {
    let mut rig = Rig::new(true);
    rig.live([0]);
    rig.live(5..16);
    assert!(rig.told().starts_with("0@100 doubt 5@100 6@100"));
    assert_eq!((rig.follower.state(), rig.asked_from()), (Partial, None));
    assert_eq!(rig.follower.held().0, 0);
}

#[test]
fn an_answer_to_an_earlier_request_is_not_taken() {
    let mut rig = Rig::new(true);
    let first = rig.asked;
    rig.wait();
    rig.wait();
    assert_ne!(rig.asked, first);
    let second = std::mem::replace(&mut rig.asked, first);
    rig.replay([0, 1]);
    assert_eq!(rig.told(), "");
    rig.asked = second;
    rig.replay([0, 1]);
    assert_eq!(rig.told(), "0@100 1@100");
}

/// Found by the simulation: the answers stopped, nothing was held back, and after three questions nobody asked
/// ever again.
#[test]
fn a_replay_that_breaks_off_is_asked_for_again_after_silence() {
    let mut rig = Rig::new(true);
    rig.replay([0, 1]);
    while rig.follower.state() == Replaying {
        rig.wait();
    }
    assert_eq!((rig.told().as_str(), rig.follower.state()), ("0@100 1@100", Live));
    rig.wait();
    rig.replay([1, 2]);
    rig.end();
    assert_eq!(rig.told(), "2@100");
}
