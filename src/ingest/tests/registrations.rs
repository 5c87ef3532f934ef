//! Registrations that are made again, replaced, waited for and left.

use std::thread;
use std::time::{Duration, Instant};

use zmq::{Context, SocketType};

use super::{Engine, Kvd, any, eventually, free_address, say, say_raw};
use crate::ingest::testing::{dialled, noise, stored};
use crate::ingest::{IngestConfig, RegisterError};
use crate::publisher::{PublisherSpec, PublisherState};

#[test]
fn the_same_registration_changes_nothing_and_another_replaces_it() {
    let (old, new) = (Engine::new(0), Engine::new(0));
    old.step(0..3, any);
    new.step(0..7, any);
    let kvd = Kvd::new(IngestConfig { max_publishers: 1, ..IngestConfig::default() });
    let first = kvd.publishers.register(old.spec("a")).unwrap();
    kvd.is("a", PublisherState::Live, 2);
    assert_eq!(kvd.publishers.register(old.spec("a")).unwrap(), first);
    assert!(!first.replaced);
    let second = kvd.publishers.register(new.spec("a")).unwrap();
    assert!(second.replaced && second.holder != first.holder);
    kvd.is("a", PublisherState::Live, 6);
    assert_eq!(kvd.publishers.freshness(first.holder), None);
    assert_eq!(kvd.cached("a"), 7);
    let refused = kvd.publishers.register(new.spec("b")).unwrap_err();
    assert!(matches!(refused, RegisterError::TooMany { max: 1 }));
    assert_eq!(kvd.publishers.totals().batches, 10, "what is gone still counts");
}

#[test]
fn an_engine_may_start_after_it_was_registered() {
    let endpoint = free_address();
    let replay = free_address();
    let kvd = Kvd::new(IngestConfig::default());
    kvd.register(PublisherSpec { replay_endpoint: Some(replay), ..dialled("a", &endpoint) });
    assert_eq!(kvd.status("a").freshness.state, PublisherState::Connecting);
    let publish = Context::new().socket(SocketType::PUB).unwrap();
    publish.set_linger(0).unwrap();
    publish.bind(&endpoint).unwrap();
    eventually("a connection", || {
        say_raw(&publish, "", 9_999, &noise(1.0));
        thread::sleep(Duration::from_millis(2));
        kvd.status("a").freshness.last_message
    });
    for seq in 0..3 {
        say(&publish, "", seq);
    }
    kvd.is("a", PublisherState::Live, 2);
}

#[test]
fn an_engine_that_dies_leaves_the_index_and_its_successor_is_followed() {
    let kvd = Kvd::new(IngestConfig { dead_after: Duration::from_millis(300), ..IngestConfig::default() });
    let engine = Engine::new(0);
    let spec = engine.spec("a");
    kvd.register(spec.clone());
    engine.step(0..5, any);
    kvd.is("a", PublisherState::Live, 4);
    assert_eq!(kvd.cached("a"), 5);
    drop(engine);
    eventually("a death", || (kvd.status("a").freshness.state == PublisherState::Dead).then_some(()));
    assert_eq!((kvd.cached("a"), kvd.status("a").deaths), (0, 1));
    // It may be started anew under the same address.
    let publish = Context::new().socket(SocketType::PUB).unwrap();
    publish.set_linger(0).unwrap();
    eventually("the address again", || publish.bind(spec.endpoint.as_ref().unwrap()).ok());
    eventually("its successor", || {
        for seq in 0..3u64 {
            publish.send_multipart([&b""[..], &seq.to_be_bytes(), &stored(500.0, seq)], 0).unwrap();
        }
        thread::sleep(Duration::from_millis(20));
        (kvd.cached("a") == 3).then_some(())
    });
    assert_eq!(kvd.status("a").freshness.state, PublisherState::Live);
}

#[test]
fn a_lease_that_is_not_renewed_ends() {
    let kvd = Kvd::new(IngestConfig::default());
    let engine = Engine::new(0);
    let leased = PublisherSpec { lease_seconds: Some(1), ..engine.spec("a") };
    let holder = kvd.register(leased.clone());
    kvd.register(engine.spec("b"));
    let until = Instant::now() + Duration::from_millis(1_500);
    while Instant::now() < until {
        assert_eq!(kvd.register(leased.clone()), holder, "a renewal changes nothing else");
        assert_eq!(kvd.publishers.gone(), []);
        thread::sleep(Duration::from_millis(50));
    }
    let gone = eventually("the end of a lease", || Some(kvd.publishers.gone()).filter(|g| !g.is_empty()));
    assert_eq!(gone, [leased], "and none without a lease");
}
