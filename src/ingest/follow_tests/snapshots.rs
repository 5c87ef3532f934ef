//! What goes on from a snapshot, and when it is certain to.

use crate::ingest::testing::Rig;
use crate::publisher::PublisherState::{Connecting, Live, Partial, Replaying};

#[test]
fn a_snapshot_is_followed_by_what_was_held_back_and_nothing_twice() {
    let mut rig = Rig::waiting(true);
    rig.live(3..8);
    assert_eq!((rig.told().as_str(), rig.follower.state()), ("", Replaying));
    rig.resume(5, 100.0);
    assert_eq!(rig.told(), "6@100 7@100", "batch 5 shows that the same engine speaks");
    rig.replay([7]);
    assert_eq!((rig.follower.state(), rig.follower.is_complete()), (Live, true));
    rig.live([8]);
    assert_eq!(rig.told(), "8@100");
}

#[test]
fn between_snapshot_and_first_message_the_history_is_asked() {
    let mut rig = Rig::waiting(true);
    rig.live([9]);
    rig.resume(5, 100.0);
    assert_eq!((rig.told().as_str(), rig.asked_from()), ("", Some(5)));
    rig.replay(5..9);
    assert_eq!(rig.told(), "6@100 7@100 8@100 9@100");
    assert_eq!((rig.follower.state(), rig.follower.is_complete()), (Live, true));
}

#[test]
fn a_silent_engine_is_not_certain_before_it_has_answered() {
    let mut rig = Rig::waiting(true);
    rig.resume(5, 100.0);
    assert_eq!((rig.follower.state(), rig.follower.is_complete()), (Connecting, false));
    rig.replay([5]);
    rig.end();
    assert_eq!((rig.follower.state(), rig.follower.is_complete()), (Live, true));
}

#[test]
fn another_engine_than_at_the_snapshot_is_learnt_anew() {
    let mut rig = Rig::waiting(true);
    rig.resume(2, 100.0);
    rig.start = 200.0;
    rig.replay([2]);
    assert_eq!(rig.told(), "clear");
    rig.wait();
    rig.replay(0..3);
    rig.end();
    assert_eq!(rig.told(), "0@200 1@200 2@200");
    assert_eq!(rig.counters.restarts.get(), 1);
}

#[test]
fn what_was_held_back_shows_that_another_engine_speaks() {
    for replayable in [true, false] {
        let mut rig = Rig::waiting(replayable);
        rig.start = 200.0;
        rig.live(0..3);
        rig.resume(5, 100.0);
        assert_eq!(rig.told(), "clear 0@200 1@200 2@200", "{replayable}");
    }
}

#[test]
fn without_replay_only_a_batch_of_the_snapshot_itself_proves_it() {
    let mut rig = Rig::waiting(false);
    rig.resume(5, 100.0);
    assert_eq!(rig.follower.state(), Connecting);
    rig.live([6]);
    assert_eq!(rig.told(), "doubt 6@100", "another engine's next number may fit by chance");
    assert_eq!(rig.follower.state(), Partial);
    let mut rig = Rig::waiting(false);
    rig.live([5, 6]);
    rig.resume(5, 100.0);
    assert_eq!(rig.told(), "6@100");
    assert_eq!((rig.follower.state(), rig.follower.is_complete()), (Live, true));
}

#[test]
fn without_replay_a_gap_after_the_snapshot_is_a_loss() {
    let mut rig = Rig::waiting(false);
    rig.resume(5, 100.0);
    rig.live([7]);
    assert_eq!(rig.told(), "doubt 7@100");
    assert_eq!(rig.follower.state(), Partial);
    let mut rig = Rig::waiting(false);
    rig.live([7, 8]);
    rig.resume(5, 100.0);
    assert_eq!(rig.told(), "doubt 7@100 8@100");
}

/// The snapshot may be of before the restart or after: it cannot be told and nobody can be asked.
#[test]
fn without_replay_a_restart_while_waiting_makes_the_snapshot_worthless() {
    let mut rig = Rig::waiting(false);
    rig.live(7..9);
    rig.start = 200.0;
    rig.live([6]);
    rig.resume(5, 100.0);
    assert_eq!(rig.told(), "clear clear doubt 6@200");
}

#[test]
fn more_than_may_be_held_back_while_waiting_shows_as_a_gap() {
    let mut rig = Rig::waiting(true);
    rig.live(3..16);
    rig.resume(5, 100.0);
    assert_eq!((rig.told().as_str(), rig.asked_from()), ("", Some(5)));
    rig.replay(5..16);
    assert_eq!(rig.told().split(' ').count(), 10);
    assert_eq!((rig.follower.state(), rig.counters.dropped.get()), (Live, 10));
}

#[test]
fn without_a_snapshot_one_that_waited_begins_like_any_other() {
    let mut rig = Rig::waiting(true);
    rig.live(0..2);
    rig.follower.begin(rig.now);
    assert_eq!((rig.told().as_str(), rig.follower.state()), ("0@100 1@100", Replaying));
    let mut rig = Rig::waiting(false);
    rig.live([4, 5]);
    rig.follower.begin(rig.now);
    assert_eq!(rig.told(), "doubt 4@100 5@100");
}

/// A new engine's numbers may go on just where the snapshot ends; only the batch that both have tells.
#[test]
fn what_comes_after_the_snapshot_waits_for_the_proof() {
    for (start, told) in [(100.0, "6@100 7@100 8@100"), (200.0, "clear")] {
        let mut rig = Rig::waiting(true);
        rig.start = start;
        rig.live([6]);
        rig.resume(5, 100.0);
        rig.live([7]);
        assert_eq!((rig.told().as_str(), rig.asked_from()), ("", Some(5)));
        assert_eq!(rig.follower.state(), Replaying);
        rig.replay([5]);
        if start == 100.0 {
            rig.live([8]);
        }
        assert_eq!(rig.told(), told);
        assert_eq!(rig.follower.is_complete(), start == 100.0);
    }
}

#[test]
fn a_history_that_begins_after_the_snapshot_proves_nothing() {
    let mut rig = Rig::waiting(true);
    rig.resume(5, 100.0);
    rig.replay([6, 7]);
    rig.end();
    assert_eq!(rig.told(), "doubt 6@100 7@100");
    assert_eq!(rig.follower.state(), Partial);
}

/// Found by the simulation: the history began right after the last batch applied, and was another
/// life's.
#[test]
fn a_history_that_begins_with_the_next_batch_proves_nothing() {
    let mut rig = Rig::new(true);
    rig.live([0, 1, 4]);
    rig.start = 200.0;
    rig.replay([2, 3]);
    rig.end();
    assert_eq!(rig.told(), "0@100 1@100 doubt 2@200 3@200");
    assert_eq!(rig.follower.state(), Partial);
}
