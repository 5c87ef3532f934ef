//! What a follower knows of an engine that it follows from the start, and of one that it comes late to.

use crate::ingest::testing::{Rig, cleared};
use crate::publisher::PublisherState::{Connecting, Live, Partial, Replaying};

#[test]
fn a_stream_followed_from_its_first_batch_is_live() {
    let mut rig = Rig::new(false);
    assert_eq!(rig.follower.state(), Connecting);
    rig.live(0..3);
    assert_eq!(rig.told(), "0@100 1@100 2@100");
    assert_eq!((rig.follower.state(), rig.follower.is_complete()), (Live, true));
    assert_eq!(rig.follower.last_seq(), Some(2));
}

#[test]
fn a_late_subscriber_asks_for_the_history() {
    let mut rig = Rig::new(true);
    assert_eq!(rig.asked_from(), Some(0));
    rig.live([3]);
    assert_eq!(rig.told(), "", "held back");
    assert_eq!(rig.follower.state(), Replaying);
    rig.replay(0..4);
    assert_eq!(rig.told(), "0@100 1@100 2@100 3@100");
    assert_eq!(rig.asked_from(), None, "the rest of the answer is of no use");
    assert_eq!((rig.follower.state(), rig.follower.is_complete()), (Live, true));
    rig.live([4]);
    assert_eq!(rig.told(), "4@100");
}

#[test]
fn live_batches_apply_without_waiting_for_the_replay() {
    let mut rig = Rig::new(true);
    rig.live([0, 1]);
    assert_eq!(rig.told(), "0@100 1@100");
    assert_eq!((rig.follower.state(), rig.asked_from()), (Live, None));
}

#[test]
fn what_a_replay_brought_is_not_applied_again() {
    let mut rig = Rig::new(true);
    rig.replay(0..5);
    rig.end();
    rig.live(3..7);
    assert_eq!(rig.told(), "0@100 1@100 2@100 3@100 4@100 5@100 6@100");
    assert_eq!(rig.counters.restarts.get(), 0);
}

#[test]
fn an_engine_that_published_nothing_yet_is_known_completely() {
    let mut rig = Rig::new(true);
    rig.end();
    assert_eq!((rig.follower.state(), rig.follower.is_complete()), (Live, true));
    assert_eq!(rig.follower.last_seq(), None);
}

/// The peer's lockout: it refused a history that does not begin at 0, and then everything.
#[test]
fn a_history_that_begins_late_is_taken_as_it_is() {
    let mut rig = Rig::new(true);
    rig.live([9]);
    rig.replay(5..10);
    assert_eq!(rig.told(), "doubt 5@100 6@100 7@100 8@100 9@100");
    assert_eq!((rig.follower.state(), rig.asked_from()), (Partial, None));
    rig.live([10]);
    assert_eq!(rig.told(), "10@100");
}

#[test]
fn a_clear_of_everything_completes_what_was_partial() {
    let mut rig = Rig::new(false);
    rig.live([7]);
    assert_eq!(rig.follower.state(), Partial);
    rig.live_raw(8, &cleared(108.0));
    assert_eq!((rig.follower.state(), rig.follower.is_complete()), (Live, true));
}

#[test]
fn an_engine_without_a_history_is_followed_all_the_same() {
    let mut rig = Rig::new(true);
    rig.end();
    rig.live([0, 1, 4]);
    while rig.asked_from().is_some() {
        rig.end();
        if rig.follower.state() == Replaying {
            rig.wait();
        }
    }
    rig.told();
    rig.live([5]);
    for _ in 0..9 {
        if rig.asked_from().is_some() {
            rig.end();
        } else if rig.follower.state() == Replaying {
            rig.wait();
        }
    }
    assert!(rig.told().ends_with("5@100"));
    assert_eq!(rig.follower.state(), Partial);
}
