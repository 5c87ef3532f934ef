//! Connections that are lost: who speaks when they are back?

use crate::ingest::testing::Rig;
use crate::publisher::PublisherState::{Live, Partial, Replaying};

/// Found by the simulation: what was held back was of one life of the engine, and the replay of the
/// next one ended just before it.
#[test]
fn what_an_earlier_life_sent_is_not_joined_to_the_replay_of_a_later_one() {
    let mut rig = Rig::new(true);
    rig.live([1, 2]);
    rig.start = 200.0;
    rig.replay([0]);
    assert_eq!(rig.told(), "0@200");
    rig.end();
    assert_eq!((rig.follower.state(), rig.follower.last_seq()), (Live, Some(0)));
    rig.live([1]);
    assert_eq!(rig.told(), "1@200");
}

/// The old engine's answer was still on its way when the new one was heard.
#[test]
fn what_was_asked_for_before_a_lost_connection_is_not_taken_after_it() {
    let mut rig = Rig::new(true);
    rig.connected();
    let before = rig.asked;
    rig.connected();
    rig.start = 200.0;
    rig.live([1]);
    let after = std::mem::replace(&mut rig.asked, before);
    rig.start = 100.0;
    rig.replay([0]);
    assert_eq!(rig.told(), "");
    rig.asked = after;
    rig.start = 200.0;
    rig.replay([0, 1]);
    assert_eq!((rig.told().as_str(), rig.follower.state()), ("0@200 1@200", Live));
}

/// Found by the simulation: another life's next batch may have just the next number.
#[test]
fn after_a_lost_connection_the_next_number_proves_nothing() {
    let mut rig = Rig::new(true);
    rig.live(0..3);
    rig.connected();
    assert_eq!((rig.asked_from(), rig.follower.state()), (Some(2), Live), "still as of batch 2");
    rig.live([3]);
    assert_eq!((rig.told().as_str(), rig.follower.state()), ("0@100 1@100 2@100", Replaying));
    rig.replay([2]);
    assert_eq!((rig.told().as_str(), rig.follower.state()), ("3@100", Live));

    rig.connected();
    rig.start = 200.0;
    rig.live([4]);
    rig.replay([3]);
    assert_eq!(rig.asked_from(), Some(0));
    rig.replay(0..5);
    assert_eq!(rig.told(), "clear 0@200 1@200 2@200 3@200 4@200");
    assert_eq!((rig.follower.state(), rig.follower.is_complete()), (Live, true));
}

#[test]
fn after_a_lost_connection_without_a_replay_what_was_known_is_in_doubt() {
    let mut rig = Rig::new(false);
    rig.live(0..3);
    rig.connected();
    rig.live([3]);
    assert_eq!((rig.told().as_str(), rig.follower.state()), ("0@100 1@100 2@100 doubt 3@100", Partial));
    rig.connected();
    rig.start = 200.0;
    rig.live([0]);
    assert_eq!((rig.told().as_str(), rig.follower.state()), ("clear 0@200", Live));
}

#[test]
fn what_was_held_back_before_a_lost_connection_is_not_joined_to_what_came_after() {
    let mut rig = Rig::new(true);
    rig.live([2]);
    rig.connected();
    rig.start = 200.0;
    rig.live([3]);
    rig.replay([0, 1, 2]);
    assert_eq!(rig.told(), "0@200 1@200 2@200 3@200");
}
