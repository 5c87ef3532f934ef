//! Conversations with a follower: what it is told, what it tells the index.
//!
//! `3@100` is batch 3 of the engine that was started at 100.

use super::testing::{Rig, cleared, noise, stored};
use super::vital::Sign;
use crate::publisher::PublisherState::{Connecting, Dead, Live, Partial, Replaying, Unreachable};

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
