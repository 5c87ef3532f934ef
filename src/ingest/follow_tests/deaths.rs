//! Engines that are taken for dead, and those that come back.

use crate::ingest::testing::Rig;
use crate::ingest::vital::Sign;
use crate::publisher::PublisherState::{Connecting, Dead, Live, Partial, Unreachable};

#[test]
fn what_the_dead_held_is_forgotten_and_who_comes_back_is_learnt_from_the_start() {
    let mut rig = Rig::new(true);
    rig.live(0..3);
    rig.told();
    rig.sign(Sign::Lost);
    assert_eq!((rig.follower.state(), rig.follower.is_complete()), (Unreachable, false));
    assert_eq!(rig.follower.last_seq(), Some(2), "what is known is as of then");
    while rig.follower.state() == Unreachable {
        rig.wait();
    }
    assert_eq!((rig.told().as_str(), rig.follower.state()), ("clear", Dead));
    assert_eq!((rig.follower.last_seq(), rig.counters.deaths.get()), (None, 1));
    assert_eq!((rig.asked_from(), rig.follower.deadline()), (None, None), "nothing is due of the dead");
    // The same engine: its connection was broken for longer than anyone waits.
    rig.connected();
    rig.sign(Sign::Greeted);
    assert_eq!(rig.asked_from(), Some(0));
    rig.live([3]);
    rig.replay(0..4);
    assert_eq!(rig.told(), "0@100 1@100 2@100 3@100");
    assert_eq!((rig.follower.state(), rig.follower.is_complete()), (Live, true));
    assert_eq!(rig.counters.restarts.get(), 0);
}

#[test]
fn a_connection_that_comes_back_in_time_costs_one_question() {
    let mut rig = Rig::new(true);
    rig.live(0..3);
    rig.sign(Sign::Lost);
    rig.connected();
    rig.sign(Sign::Greeted);
    assert_eq!(rig.asked_from(), Some(2));
    rig.replay([2]);
    rig.end();
    rig.live([3]);
    assert_eq!(rig.told(), "0@100 1@100 2@100 3@100");
    assert_eq!((rig.follower.state(), rig.follower.is_complete()), (Live, true));
}

#[test]
fn an_engine_that_never_came_up_is_not_dead() {
    let mut rig = Rig::new(true);
    rig.sign(Sign::Lost);
    for _ in 0..30 {
        rig.wait();
    }
    assert_eq!((rig.told().as_str(), rig.follower.state()), ("", Connecting));
    assert_eq!(rig.counters.deaths.get(), 0);
}

#[test]
fn what_a_snapshot_has_of_an_engine_that_is_gone_is_forgotten_too() {
    let mut rig = Rig::waiting(true);
    rig.sign(Sign::Lost);
    rig.resume(7, 100.0);
    while rig.follower.state() != Dead {
        rig.wait();
    }
    assert_eq!(rig.told(), "clear");
    rig.start = 200.0;
    rig.sign(Sign::Greeted);
    rig.replay([0, 1]);
    rig.end();
    assert_eq!((rig.told().as_str(), rig.follower.state()), ("0@200 1@200", Live));
}

#[test]
fn an_engine_without_a_connection_of_its_own_that_was_not_well_is_back_when_it_is_heard() {
    let mut rig = Rig::new(false);
    rig.live(0..3);
    rig.told();
    rig.sign(Sign::Ill);
    assert_eq!(rig.follower.state(), Live, "its events still count");
    rig.wait();
    assert_eq!((rig.told().as_str(), rig.follower.state()), ("clear", Dead));
    rig.live([3]);
    assert_eq!((rig.told().as_str(), rig.follower.state()), ("doubt 3@100", Partial));
}

/// Found by the simulation: its history came though its live socket had never been reached.
#[test]
fn an_engine_whose_history_comes_is_not_dead() {
    let mut rig = Rig::new(true);
    rig.sign(Sign::Lost);
    while !rig.follower.vital.is_dead() {
        rig.wait();
    }
    assert_eq!(rig.follower.state(), Connecting);
    rig.replay([0, 1]);
    assert_eq!((rig.told().as_str(), rig.follower.state()), ("0@100 1@100", Unreachable));
    while rig.follower.state() != Dead {
        rig.wait();
    }
    assert_eq!(rig.told(), "clear", "it has been heard once, and not since");
}

/// Found by the simulation: batches held back of an engine that died were applied when nobody replayed
/// what was before them.
#[test]
fn what_was_held_back_of_the_dead_is_not_applied() {
    let mut rig = Rig::new(true);
    rig.live([5, 6]);
    rig.sign(Sign::Lost);
    // Nobody had a turn for so long.
    rig.now += std::time::Duration::from_secs(30);
    rig.wait();
    assert_eq!(rig.told(), "clear");
    assert_eq!((rig.follower.state(), rig.asked_from(), rig.follower.deadline()), (Connecting, None, None));
    rig.sign(Sign::Greeted);
    rig.start = 200.0;
    rig.live([0]);
    assert_eq!((rig.told().as_str(), rig.follower.state()), ("0@200", Live));
}
