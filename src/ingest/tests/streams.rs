//! One engine's stream, with what is lost of it, comes twice, or is no batch.

use std::sync::atomic::Ordering::Relaxed;

use zmq::{Context, SocketType};

use super::{Engine, Kvd, any, eventually};
use crate::ingest::IngestConfig;
use crate::ingest::testing::{noise, stored};
use crate::publisher::{PublisherSpec, PublisherState};

/// An engine that published so many batches, and a kvd that has them and hears what comes next.
fn followed(batches: u64) -> (Engine, Kvd) {
    let engine = Engine::new(0);
    engine.step(0..batches, any);
    let kvd = Kvd::new(IngestConfig::default());
    let holder = kvd.register(engine.spec("a"));
    kvd.is("a", PublisherState::Live, batches - 1);
    engine.knock(|| kvd.publishers.freshness(holder).unwrap().last_message.is_some());
    (engine, kvd)
}

#[test]
fn who_comes_late_learns_the_history_and_then_follows() {
    let engine = Engine::new(0);
    engine.step(0..20, any);
    let kvd = Kvd::new(IngestConfig::default());
    let holder = kvd.register(engine.spec("a"));
    kvd.is("a", PublisherState::Live, 19);
    assert_eq!(kvd.cached("a"), 20);
    engine.knock(|| kvd.publishers.freshness(holder).unwrap().last_message.is_some());
    engine.step(20..25, any);
    kvd.is("a", PublisherState::Live, 24);
    assert_eq!(kvd.cached("a"), 25);
    let status = kvd.status("a");
    assert_eq!((status.gaps, status.batches, status.queued), (0, 25, 0));
    assert!(status.freshness.complete && status.freshness.oldest_queued.is_none());
}

#[test]
fn a_gap_is_healed_though_the_replay_drops_messages_in_the_middle() {
    let engine = Engine::new(1);
    let kvd = Kvd::new(IngestConfig::default());
    let holder = kvd.register(PublisherSpec { replay_endpoint: None, ..engine.spec("a") });
    engine.knock(|| kvd.publishers.freshness(holder).unwrap().last_message.is_some());
    kvd.register(engine.spec("a"));
    eventually("the empty history", || {
        (kvd.status("a").freshness.state == PublisherState::Live).then_some(())
    });
    engine.asked.store(0, Relaxed);
    let holder = kvd.status("a").holder;
    engine.knock(|| kvd.publishers.freshness(holder).unwrap().last_message.is_some());
    engine.step(0..5, any);
    kvd.is("a", PublisherState::Live, 4);
    engine.step(5..30, |seq| seq > 20);
    kvd.is("a", PublisherState::Live, 29);
    assert_eq!(kvd.cached("a"), 30);
    assert!(engine.asked.load(Relaxed) > 1, "the first answer had holes");
    assert_eq!(kvd.status("a").gaps, 1);
    assert_eq!(kvd.publishers.totals().losses, 0);
}

#[test]
fn a_history_of_ten_thousand_batches_comes_whole() {
    let engine = Engine::new(0);
    engine.step(0..10_000, any);
    let kvd = Kvd::new(IngestConfig::default());
    let holder = kvd.register(engine.spec("a"));
    kvd.is("a", PublisherState::Live, 9_999);
    assert_eq!(kvd.index.holder_stats(holder).unwrap().blocks, 10_000);
    assert_eq!(kvd.publishers.totals().losses, 0);
}

#[test]
fn a_history_whose_beginning_is_gone_does_not_lock_the_engine_out() {
    let engine = Engine::new(0);
    engine.step(0..10, any);
    engine.history.lock().drain(..5);
    let kvd = Kvd::new(IngestConfig::default());
    let holder = kvd.register(engine.spec("a"));
    kvd.is("a", PublisherState::Partial, 9);
    engine.knock(|| kvd.publishers.freshness(holder).unwrap().last_message.is_some());
    engine.step(10..12, any);
    kvd.is("a", PublisherState::Partial, 11);
    assert_eq!(kvd.index.holder_stats(holder).unwrap().blocks, 7);
    assert!(!kvd.status("a").freshness.complete);
}

#[test]
fn a_restarted_engine_is_learnt_anew() {
    let (mut engine, kvd) = followed(10);
    engine.step(10..11, any);
    kvd.is("a", PublisherState::Live, 10);
    engine.restart();
    engine.step(0..3, any);
    kvd.is("a", PublisherState::Live, 2);
    assert_eq!((kvd.cached("a"), kvd.status("a").restarts), (3, 1));
    assert_eq!(kvd.publishers.catalog().lives().into_values().collect::<Vec<_>>(), [1]);
}

#[test]
fn a_restart_behind_a_gap_shows_in_the_time_of_the_last_batch() {
    let (mut engine, kvd) = followed(10);
    engine.restart();
    engine.step(0..15, |seq| seq == 14);
    kvd.is("a", PublisherState::Live, 14);
    assert_eq!((kvd.cached("a"), kvd.status("a").restarts), (15, 1));
}

/// Nobody listened while the new engine said what the old one had said: its next number fits.
#[test]
fn a_restart_that_looks_like_nothing_at_all_shows_in_the_new_connection() {
    let (mut engine, kvd) = followed(10);
    let heard = || kvd.status("a").freshness.last_message;
    engine.publish = {
        // The old socket is closed when the new one is bound to its address.
        let endpoint = engine.endpoint.clone();
        let publish = Context::new().socket(SocketType::PUB).unwrap();
        drop(std::mem::replace(&mut engine.publish, Context::new().socket(SocketType::PUB).unwrap()));
        eventually("a free address", || publish.bind(&endpoint).ok());
        publish
    };
    engine.restart();
    engine.step(0..10, |_| false);
    let before = heard();
    engine.knock(|| heard() > before);
    engine.step(10..11, any);
    kvd.is("a", PublisherState::Live, 10);
    assert_eq!((kvd.cached("a"), kvd.status("a").restarts), (11, 1));
}

#[test]
fn garbage_on_the_wire_leaves_the_valid_stream_exact() {
    let engine = Engine::new(0);
    let kvd = Kvd::new(IngestConfig { max_message_bytes: 1 << 20, ..IngestConfig::default() });
    let holder = kvd.register(engine.spec("a"));
    engine.knock(|| kvd.publishers.freshness(holder).unwrap().last_message.is_some());
    for seq in 0..50u64 {
        let good = stored(engine.start, seq);
        engine.publish.send("one frame", 0).unwrap();
        engine.publish.send_multipart(vec![vec![7u8; 10]; 40], 0).unwrap();
        engine.publish.send_multipart([&b""[..], b"short", &good], 0).unwrap();
        engine.send(u64::MAX, b"");
        engine.send(seq, &good[..good.len() - 3]);
        engine.send(seq + 1000, &vec![0xc1; 10_000]);
        engine.send(seq, &noise(1.0));
        engine.step([seq], any);
    }
    // Noise with the last number is there before the batch itself.
    eventually("all blocks", || (kvd.cached("a") == 50).then_some(()));
    kvd.is("a", PublisherState::Live, 49);
    let status = kvd.status("a");
    assert_eq!((status.gaps, status.restarts), (0, 0));
    assert!(status.malformed >= 300 && status.last_error.is_some());
}

#[test]
fn what_a_full_queue_drops_is_counted_and_learnt_by_replay() {
    let engine = Engine::new(0);
    let config = IngestConfig { threads: 1, queue_messages: 8, ..IngestConfig::default() };
    let kvd = Kvd::new(config);
    let holder = kvd.register(engine.spec("a"));
    engine.knock(|| kvd.publishers.freshness(holder).unwrap().last_message.is_some());
    engine.step(0..1, any);
    kvd.is("a", PublisherState::Live, 0);
    let mut seq = 1;
    eventually("a full queue", || {
        engine.step(seq..seq + 500, any);
        seq += 500;
        (kvd.publishers.totals().dropped > 0).then_some(())
    });
    // Nothing comes after the flood: what was dropped last would show in no gap.
    kvd.is("a", PublisherState::Live, seq - 1);
    assert_eq!(kvd.index.holder_stats(holder).unwrap().blocks, seq);
    assert_eq!(kvd.publishers.totals().losses, 0);
}
