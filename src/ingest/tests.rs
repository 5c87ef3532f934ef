//! Ingest as a whole: real sockets on free ports, a real index.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvindex::{HolderId, Index, IndexConfig, Prompt, Query};
use parking_lot::Mutex;
use zmq::{Context, Socket, SocketType};

use super::testing::{dialled, noise, prompt, stored};
use super::{IngestConfig, Listen, Publishers, RegisterError, StartError};
use crate::publisher::{PublisherSpec, PublisherState, PublisherStatus, Selector};
use crate::state::Catalog;

/// Waits until `check` says something; for ever would be too long.
fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{what} did not happen");
        thread::sleep(Duration::from_millis(2));
    }
}

/// What an engine's replay socket answers with: number and payload.
type History = Arc<Mutex<Vec<(u64, Vec<u8>)>>>;

/// An engine's two sockets.
struct Engine {
    publish: Socket,
    history: History,
    endpoint: String,
    replay: String,
    start: f64,
    asked: Arc<AtomicU64>,
    replayer: Option<JoinHandle<()>>,
    stop: Arc<AtomicU64>,
}

impl Engine {
    /// An engine whose replays leave out, the first `dropping` times, every third batch.
    fn new(dropping: u64) -> Engine {
        let context = Context::new();
        let (publish, endpoint) = bound(&context, SocketType::PUB);
        let (router, replay) = bound(&context, SocketType::ROUTER);
        router.set_rcvtimeo(10).unwrap();
        let history = History::default();
        let (asked, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let replayer = {
            let (history, asked, stop) = (Arc::clone(&history), Arc::clone(&asked), Arc::clone(&stop));
            thread::spawn(move || {
                while stop.load(Relaxed) == 0 {
                    let Ok(request) = router.recv_multipart(0) else { continue };
                    let times = asked.fetch_add(1, Relaxed);
                    let from = u64::from_be_bytes(request[2].as_slice().try_into().unwrap());
                    let say = |seq: u64, payload: &[u8]| {
                        let frames: [&[u8]; 5] = [&request[0], b"", b"", &seq.to_be_bytes(), payload];
                        router.send_multipart(frames, 0).unwrap();
                    };
                    for (seq, payload) in history.lock().iter().filter(|(seq, _)| *seq >= from) {
                        if times >= dropping || *seq == from || seq % 3 != 2 {
                            say(*seq, payload);
                        }
                    }
                    say(u64::MAX, b"");
                }
            })
        };
        Engine { publish, history, endpoint, replay, start: 100.0, asked, replayer: Some(replayer), stop }
    }

    /// Its registration as `instance`.
    fn spec(&self, instance: &str) -> PublisherSpec {
        PublisherSpec {
            replay_endpoint: Some(self.replay.clone()),
            block_size: Some(4),
            ..dialled(instance, &self.endpoint)
        }
    }

    /// Steps `seqs`, each with its batch. Those that `arrives` refuses are lost on the way.
    fn step(&self, seqs: impl IntoIterator<Item = u64>, arrives: impl Fn(u64) -> bool) {
        for seq in seqs {
            let payload = stored(self.start, seq);
            if arrives(seq) {
                self.send(seq, &payload);
            }
            self.history.lock().push((seq, payload));
        }
    }

    fn send(&self, seq: u64, payload: &[u8]) {
        self.publish.send_multipart([&b""[..], &seq.to_be_bytes(), payload], 0).unwrap();
    }

    /// Says nothing of importance until `heard` says that it arrives.
    fn knock(&self, heard: impl Fn() -> bool) {
        eventually("a subscription", || {
            self.send(9_999, &noise(1.0));
            thread::sleep(Duration::from_millis(2));
            heard().then_some(())
        });
    }

    /// Starts anew: an empty cache, numbers from 0.
    fn restart(&mut self) {
        self.history.lock().clear();
        self.start += 1000.0;
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop.store(1, Relaxed);
        if let Some(replayer) = self.replayer.take() {
            replayer.join().unwrap();
        }
    }
}

fn bound(context: &Context, kind: SocketType) -> (Socket, String) {
    let socket = context.socket(kind).unwrap();
    socket.set_linger(0).unwrap();
    // A ROUTER as vLLM 0.32 leaves it: what is over libzmq's default of 1000 is dropped.
    if kind == SocketType::PUB {
        socket.set_sndhwm(0).unwrap();
    }
    socket.bind("tcp://127.0.0.1:*").unwrap();
    let endpoint = socket.get_last_endpoint().unwrap().unwrap();
    (socket, endpoint)
}

/// An address that nobody uses.
fn free_address() -> String {
    bound(&Context::new(), SocketType::PUB).1
}

/// kvd's ingest and its index.
struct Kvd {
    index: Arc<Index>,
    publishers: Arc<Publishers>,
}

impl Kvd {
    fn new(config: IngestConfig) -> Kvd {
        Kvd::with_store(config, None).unwrap()
    }

    fn with_store(config: IngestConfig, store: Option<std::path::PathBuf>) -> Result<Kvd, StartError> {
        let index = Arc::new(Index::new(IndexConfig::default()));
        let catalog = store.map(|directory| Arc::new(Catalog::open(&directory).unwrap()));
        let publishers = Publishers::start(Arc::clone(&index), config, catalog)?;
        publishers.begin();
        Ok(Kvd { index, publishers })
    }

    fn register(&self, spec: PublisherSpec) -> HolderId {
        self.publishers.register(spec).unwrap().holder
    }

    fn status(&self, instance: &str) -> PublisherStatus {
        self.publishers.list().into_iter().find(|p| p.spec.instance_id == instance).unwrap()
    }

    fn is(&self, instance: &str, state: PublisherState, last_seq: u64) {
        eventually(&format!("{instance} {state:?} at {last_seq}"), || {
            let f = self.status(instance).freshness;
            (f.state == state && f.last_seq == Some(last_seq)).then_some(())
        });
    }

    /// Blocks of the engines' prompt that `instance` has from the root.
    fn cached(&self, instance: &str) -> u32 {
        let tokens = prompt(100);
        let answer = self.index.query(&Query::new("default", "m", Prompt::tokens(&tokens)));
        let holder = self.status(instance).holder;
        answer.scores.iter().find(|s| s.holder == holder).map_or(0, |s| s.cached)
    }
}

fn any(_: u64) -> bool {
    true
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
    let mut engine = Engine::new(0);
    engine.step(0..10, any);
    let kvd = Kvd::new(IngestConfig::default());
    let holder = kvd.register(engine.spec("a"));
    kvd.is("a", PublisherState::Live, 9);
    engine.knock(|| kvd.publishers.freshness(holder).unwrap().last_message.is_some());
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
    let mut engine = Engine::new(0);
    engine.step(0..10, any);
    let kvd = Kvd::new(IngestConfig::default());
    let holder = kvd.register(engine.spec("a"));
    kvd.is("a", PublisherState::Live, 9);
    engine.knock(|| kvd.publishers.freshness(holder).unwrap().last_message.is_some());
    engine.restart();
    engine.step(0..15, |seq| seq == 14);
    kvd.is("a", PublisherState::Live, 14);
    assert_eq!((kvd.cached("a"), kvd.status("a").restarts), (15, 1));
}

/// Nobody listened while the new engine said what the old one had said: its next number fits.
#[test]
fn a_restart_that_looks_like_nothing_at_all_shows_in_the_new_connection() {
    let mut engine = Engine::new(0);
    engine.step(0..10, any);
    let kvd = Kvd::new(IngestConfig::default());
    let holder = kvd.register(engine.spec("a"));
    kvd.is("a", PublisherState::Live, 9);
    let heard = || kvd.publishers.freshness(holder).unwrap().last_message;
    engine.knock(|| heard().is_some());
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

/// Engines that dial in, each a PUB socket of its own.
fn dial_in(bind: &str) -> Socket {
    let socket = Context::new().socket(SocketType::PUB).unwrap();
    socket.set_linger(0).unwrap();
    socket.set_reconnect_ivl(10).unwrap();
    socket.connect(bind).unwrap();
    socket
}

fn say(socket: &Socket, topic: &str, seq: u64) {
    say_raw(socket, topic, seq, &stored(100.0, seq));
}

fn say_raw(socket: &Socket, topic: &str, seq: u64, payload: &[u8]) {
    socket.send_multipart([topic.as_bytes(), &seq.to_be_bytes(), payload], 0).unwrap();
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
