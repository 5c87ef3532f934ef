//! Engines that say nothing: was anything missed?

use crate::ingest::testing::Rig;
use crate::publisher::PublisherState::{Live, Partial};

#[test]
fn silence_is_followed_by_a_check_that_finds_what_was_missed() {
    let mut rig = Rig::new(true);
    rig.replay([0, 1]);
    rig.end();
    rig.wait();
    assert_eq!((rig.asked_from(), rig.follower.state()), (Some(1), Live));
    rig.replay([1, 2]);
    rig.end();
    assert_eq!(rig.told(), "0@100 1@100 2@100");
    assert_eq!(rig.asked_from(), None);
}

/// A full queue cut the answer off, and cut the next one off before its first batch.
#[test]
fn a_check_that_found_something_goes_on_until_it_has_everything() {
    let mut rig = Rig::new(true);
    rig.live([0]);
    rig.wait();
    rig.replay([0, 1]);
    for _ in 0..2 {
        let (ask, _) = rig.asked.expect("asked");
        rig.follower.cut_off(ask, rig.now);
        if let Some(crate::ingest::follow::Request::Ask { ask, from }) = rig.follower.take_request() {
            rig.asked = Some((ask, from));
        }
    }
    let began = rig.now;
    rig.wait();
    assert!(rig.now - began < std::time::Duration::from_secs(5), "asked again soon");
    rig.replay([1, 2]);
    rig.end();
    assert_eq!(rig.told(), "0@100 1@100 2@100");
}

#[test]
fn a_check_that_is_not_answered_changes_nothing() {
    let mut rig = Rig::new(true);
    rig.live([0, 1]);
    rig.wait();
    assert_eq!(rig.asked_from(), Some(1));
    rig.wait();
    assert_eq!((rig.told().as_str(), rig.follower.state()), ("0@100 1@100", Live));
}

#[test]
fn a_check_finds_an_engine_that_restarted_and_fell_silent() {
    let mut rig = Rig::new(true);
    rig.live(0..4);
    rig.wait();
    rig.replay([3]);
    rig.end();
    rig.start = 200.0;
    rig.wait();
    rig.end();
    assert_eq!(rig.asked_from(), Some(0));
    rig.replay([0]);
    rig.end();
    assert_eq!(rig.told(), "0@100 1@100 2@100 3@100 clear 0@200");
    assert_eq!((rig.follower.state(), rig.follower.is_complete()), (Live, true));
}

/// Found by the simulation: followed live from its first batch, the engine had never answered with one.
#[test]
fn an_engine_that_restarted_and_is_silent_is_noticed_though_it_never_replayed_anything() {
    let mut rig = Rig::new(true);
    rig.live(0..3);
    rig.start = 200.0;
    rig.wait();
    assert_eq!(rig.asked_from(), Some(2));
    rig.end();
    assert_eq!(rig.told(), "0@100 1@100 2@100 clear");
    rig.end();
    assert_eq!(rig.follower.state(), Partial);
    rig.live([0]);
    assert_eq!((rig.told().as_str(), rig.follower.state()), ("0@200", Live));
}

/// Found by the simulation: the check after a repair was due for ever, and its lane took one turn after
/// the other.
#[test]
fn an_engine_that_cannot_be_checked_has_no_deadline_that_is_past() {
    let mut rig = Rig::new(true);
    rig.end();
    rig.live([0, 1, 4]);
    for _ in 0..40 {
        if rig.asked_from().is_some() {
            rig.end();
        } else if rig.follower.deadline().is_some() {
            rig.wait();
        }
        assert!(rig.follower.deadline().is_none_or(|at| at > rig.now), "due again at once");
    }
}
