//! Ingest as a whole: real sockets on free ports, a real index.

mod registrations;
mod shared_sockets;
mod streams;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvindex::{HolderId, Index, IndexConfig, Prompt, Query};
use parking_lot::Mutex;
use zmq::{Context, Socket, SocketType};

use crate::ingest::testing::{dialled, noise, prompt, stored};
use crate::ingest::{IngestConfig, Publishers, StartError};
use crate::publisher::{PublisherSpec, PublisherState, PublisherStatus};
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

fn say(socket: &Socket, topic: &str, seq: u64) {
    say_raw(socket, topic, seq, &stored(100.0, seq));
}

fn say_raw(socket: &Socket, topic: &str, seq: u64, payload: &[u8]) {
    socket.send_multipart([topic.as_bytes(), &seq.to_be_bytes(), payload], 0).unwrap();
}
