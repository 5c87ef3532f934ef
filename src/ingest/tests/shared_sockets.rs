//! Engines that dial in to one address, and are told apart there.

use std::thread;
use std::time::Duration;

use zmq::{Context, Socket, SocketType};

use super::{Engine, Kvd, any, bound, eventually, free_address, say, say_raw};
use crate::ingest::testing::{dialled, noise};
use crate::ingest::{IngestConfig, Listen, RegisterError};
use crate::publisher::{PublisherSpec, PublisherState, Selector};

/// Engines that dial in, each a PUB socket of its own.
fn dial_in(bind: &str) -> Socket {
    let socket = Context::new().socket(SocketType::PUB).unwrap();
    socket.set_linger(0).unwrap();
    socket.set_reconnect_ivl(10).unwrap();
    socket.connect(bind).unwrap();
    socket
}

fn listening(instance: &str, bind: &str) -> PublisherSpec {
    PublisherSpec { endpoint: None, bind: Some(bind.to_owned()), ..dialled(instance, "") }
}

#[test]
fn engines_on_one_address_are_told_apart_by_their_topics() {
    let bind = free_address();
    let kvd = Kvd::new(IngestConfig::default());
    kvd.register(listening("10.0.0.1:8000", &bind));
    kvd.register(PublisherSpec { topic: Some("second".into()), ..listening("10.0.0.2:8000", &bind) });
    let elsewhere = Engine::new(0);
    kvd.register(elsewhere.spec("10.0.0.9:8000"));
    let (one, two) = (dial_in(&bind), dial_in(&bind));
    eventually("both connections", || {
        say_raw(&one, "kv@10.0.0.1:8000@m", 9_999, &noise(1.0));
        say_raw(&two, "second", 9_999, &noise(1.0));
        thread::sleep(Duration::from_millis(2));
        kvd.publishers
            .list()
            .iter()
            .filter(|p| p.spec.bind.is_some())
            .all(|p| p.freshness.last_message.is_some())
            .then_some(())
    });
    for seq in 0..5 {
        say(&one, "kv@10.0.0.1:8000@m", seq);
        say(&two, "second", seq);
        // Nobody here, whatever it says: that pod is registered elsewhere.
        say(&two, "kv@10.0.0.9:8000@m", seq);
    }
    say(&two, "second", 5);
    kvd.is("10.0.0.1:8000", PublisherState::Live, 4);
    kvd.is("10.0.0.2:8000", PublisherState::Live, 5);
    assert_eq!((kvd.cached("10.0.0.1:8000"), kvd.cached("10.0.0.2:8000")), (5, 6));
    assert_eq!(kvd.cached("10.0.0.9:8000"), 0);
    assert_eq!(kvd.publishers.totals().unclaimed, 5);
}

#[test]
fn two_ranks_on_one_address_need_topics() {
    let bind = free_address();
    let kvd = Kvd::new(IngestConfig::default());
    kvd.register(listening("10.0.0.1:8000", &bind));
    let rank = PublisherSpec { dp_rank: 1, ..listening("10.0.0.1:8000", &bind) };
    let refused = kvd.publishers.register(rank.clone()).unwrap_err();
    assert!(matches!(refused, RegisterError::Invalid { field: "topic", .. }), "{refused}");
    kvd.register(PublisherSpec { topic: Some("rank 1".into()), ..rank });
}

#[test]
fn engines_that_dial_in_are_registered_by_their_topics() {
    let bind = free_address();
    let listen = Listen { bind: bind.clone(), max_publishers: 2, ..Listen::default() };
    let kvd = Kvd::new(IngestConfig { listen: vec![listen], ..IngestConfig::default() });
    let engine = dial_in(&bind);
    let topics = ["kv@10.0.0.1:8000@m", "kv@[fe80::1]:8000@org/m@2", "kv@10.0.0.3:8000@m"];
    eventually("two of them", || {
        for topic in topics {
            say_raw(&engine, topic, 9_999, &noise(1.0));
        }
        thread::sleep(Duration::from_millis(2));
        (kvd.publishers.list().len() == 2).then_some(())
    });
    for seq in 0..3 {
        say(&engine, topics[1], seq);
        say(&engine, topics[2], seq);
        say(&engine, topics[0], seq);
    }
    kvd.is("10.0.0.1:8000", PublisherState::Live, 2);
    kvd.is("[fe80::1]:8000", PublisherState::Live, 2);
    assert_eq!(kvd.status("[fe80::1]:8000").spec.model, "org/m@2");
    assert_eq!(kvd.publishers.list().len(), 2, "no more than may be");
    assert!(kvd.publishers.totals().unclaimed >= 3);
}

#[test]
fn registrations_survive_and_strangers_come_again_by_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let store = Some(dir.path().join("data"));
    let bind = free_address();
    let listen = Listen { bind: bind.clone(), ..Listen::default() };
    let config = IngestConfig { listen: vec![listen], ..IngestConfig::default() };
    let engine = Engine::new(0);
    engine.step(0..3, any);
    {
        let kvd = Kvd::with_store(config, store.clone()).unwrap();
        kvd.register(engine.spec("a"));
        kvd.register(engine.spec("b"));
        let selector =
            Selector { tenant_id: "default".into(), model: None, instance_id: "b".into(), dp_rank: None };
        assert_eq!(kvd.publishers.unregister(&selector).unwrap().len(), 1);
        let stranger = dial_in(&bind);
        eventually("a stranger", || {
            say_raw(&stranger, "kv@10.0.0.1:8000@m", 9_999, &noise(1.0));
            thread::sleep(Duration::from_millis(2));
            (kvd.publishers.list().len() == 2).then_some(())
        });
    }
    let kvd = Kvd::with_store(IngestConfig::default(), store).unwrap();
    kvd.is("a", PublisherState::Live, 2);
    let specs: Vec<_> = kvd.publishers.list().into_iter().map(|p| p.spec).collect();
    assert_eq!(specs, [engine.spec("a")]);
}

#[test]
fn an_address_is_free_again_when_its_last_publisher_is_gone() {
    let bind = free_address();
    let kvd = Kvd::new(IngestConfig::default());
    let selector =
        Selector { tenant_id: "default".into(), model: None, instance_id: "a".into(), dp_rank: None };
    for _ in 0..3 {
        kvd.register(listening("a", &bind));
        assert_eq!(kvd.publishers.unregister(&selector).unwrap().len(), 1);
    }
    let taken = bound(&Context::new(), SocketType::PUB);
    let refused = kvd.publishers.register(listening("a", &taken.1)).unwrap_err();
    assert!(matches!(refused, RegisterError::Address { field: "bind", .. }), "{refused}");
    assert!(kvd.publishers.list().is_empty());
}
