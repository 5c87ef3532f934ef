//! How do subscribers hear of a node's blocks? As they hear of an engine's.
//!
//! ```text
//!   Node ─▶ queue per model ─▶ PUB     [topic, seq, payload]
//!   Node ◀─ replay ─────────── ROUTER  [empty, start] ─▶ [empty, topic, seq, payload]..., end marker
//! ```
//!
//! A queue that is full drops: whoever misses a batch sees the gap and asks the replay socket, which
//! reads the node's log.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use kvtier::node::{Node, Publish};
use tracing::{debug, warn};

use super::config::Model;

/// Batches that wait to be sent, per model.
const WAITING: usize = 10_000;
/// Messages that a slow subscriber may be behind before it loses some.
const SEND_HWM: i32 = 100_000;
/// By when those who were subscribed before are so again: kvd tries every 500 ms at most.
const RECONNECTED: Duration = Duration::from_millis(700);
/// By when nobody is expected to subscribe at once.
const ALONE: Duration = Duration::from_millis(1500);
/// Batches read from the log at a time.
const PAGE: usize = 256;
/// How long a socket listens before it looks whether it should end.
const LISTEN: Duration = Duration::from_millis(20);

type Batch = (u64, Vec<u8>);

/// Takes batches from the node to the sockets' threads.
#[derive(Debug, Default)]
pub struct Publisher {
    /// By the stream's number.
    queues: RwLock<Vec<Option<Sender<Batch>>>>,
    /// Batches left out because a queue was full.
    pub dropped: AtomicU64,
    /// Batches sent.
    pub sent: AtomicU64,
}

impl Publish for Publisher {
    fn publish(&self, stream: u32, seq: u64, payload: &[u8]) {
        let queues = self.queues.read().unwrap_or_else(PoisonError::into_inner);
        let Some(Some(queue)) = queues.get(stream as usize) else { return };
        match queue.try_send((seq, payload.to_vec())) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// The sockets of one model. They close when this is dropped.
#[derive(Debug)]
pub struct Sockets {
    /// The model.
    pub model: String,
    /// Where it is published, with the port it got.
    pub publish: String,
    /// Where replay requests are answered, with the port it got.
    pub replay: String,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// A socket that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("bind {endpoint}: {source}")]
pub struct BindError {
    /// At which address.
    pub endpoint: String,
    /// Why not.
    pub source: zmq::Error,
}

impl Sockets {
    /// Opens a model's sockets and begins to publish its stream.
    ///
    /// # Errors
    ///
    /// [`BindError`] where an address cannot be had.
    pub fn open(
        publisher: &Arc<Publisher>,
        node: &Arc<Node>,
        stream: u32,
        model: &Model,
    ) -> Result<Sockets, BindError> {
        let context = zmq::Context::new();
        let bind = |kind, endpoint: &str| {
            let open = || {
                let socket = context.socket(kind)?;
                socket.set_sndhwm(if kind == zmq::XPUB { SEND_HWM } else { 0 })?;
                socket.set_linger(500)?;
                socket.bind(endpoint)?;
                let bound = socket.get_last_endpoint()?.map_err(|_| zmq::Error::EINVAL)?;
                Ok((socket, bound))
            };
            open().map_err(|source| BindError { endpoint: endpoint.to_owned(), source })
        };
        let (live, publish) = bind(zmq::XPUB, &model.publish)?;
        let (router, replay) = bind(zmq::ROUTER, &model.replay)?;
        let topic = format!("kv@{}@{}", node.name(), model.name).into_bytes();
        let (queue, batches) = bounded(WAITING);
        {
            let mut queues = publisher.queues.write().unwrap_or_else(PoisonError::into_inner);
            let at = stream as usize;
            let length = queues.len().max(at + 1);
            queues.resize_with(length, || None);
            queues[at] = Some(queue);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let threads = {
            let (publisher, stopped, of_live) = (publisher.clone(), stop.clone(), topic.clone());
            let (node, stopped_too) = (node.clone(), stop.clone());
            vec![
                std::thread::spawn(move || send(&live, &of_live, &batches, &publisher, &stopped)),
                std::thread::spawn(move || answer_all(&router, &topic, &node, stream, &stopped_too)),
            ]
        };
        Ok(Sockets { model: model.name.clone(), publish, replay, stop, threads })
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            // It does not panic; a panic there must not become one here.
            let _ = thread.join();
        }
    }
}

fn send(
    socket: &zmq::Socket,
    topic: &[u8],
    batches: &Receiver<Batch>,
    publisher: &Publisher,
    stop: &AtomicBool,
) {
    wait_for_subscribers(socket, stop);
    loop {
        match batches.recv_timeout(LISTEN) {
            Ok((seq, payload)) => {
                match socket.send_multipart([topic, &seq.to_be_bytes(), &payload], zmq::DONTWAIT) {
                    Ok(()) => publisher.sent.fetch_add(1, Ordering::Relaxed),
                    Err(_) => publisher.dropped.fetch_add(1, Ordering::Relaxed),
                };
            }
            // What waited is sent before the end.
            Err(RecvTimeoutError::Timeout) if stop.load(Ordering::Acquire) => return,
            // The socket has heeded subscriptions already; they only must not pile up.
            Err(RecvTimeoutError::Timeout) => while socket.recv_bytes(zmq::DONTWAIT).is_ok() {},
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// What a node tells first is what a restart changed. Whoever was subscribed before has to connect
/// again for that, and would otherwise not notice before the next change that it missed it.
fn wait_for_subscribers(socket: &zmq::Socket, stop: &AtomicBool) {
    let (began, mut subscribed) = (Instant::now(), false);
    while !stop.load(Ordering::Acquire) {
        let waited = began.elapsed();
        if waited >= (if subscribed { RECONNECTED } else { ALONE }) {
            return;
        }
        match socket.poll(zmq::POLLIN, LISTEN.as_millis() as i64) {
            Ok(0) => {}
            Ok(_) => subscribed |= socket.recv_bytes(zmq::DONTWAIT).is_ok_and(|f| f.first() == Some(&1)),
            Err(_) => return,
        }
    }
}

fn answer_all(socket: &zmq::Socket, topic: &[u8], node: &Node, stream: u32, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        match socket.poll(zmq::POLLIN, LISTEN.as_millis() as i64) {
            Ok(0) => {}
            Ok(_) => {
                if let Err(error) = answer(socket, topic, node, stream) {
                    debug!(%error, "replay request not answered");
                }
            }
            Err(error) => return warn!(%error, "replay socket failed"),
        }
    }
}

/// Answers one request; one of another form gets no answer, as from an engine.
fn answer(socket: &zmq::Socket, topic: &[u8], node: &Node, stream: u32) -> anyhow::Result<()> {
    let request = socket.recv_multipart(0)?;
    let [client, empty, start] = &request[..] else { return Ok(()) };
    let Ok(start) = <[u8; 8]>::try_from(&start[..]) else { return Ok(()) };
    if !empty.is_empty() {
        return Ok(());
    }
    let mut next = u64::from_be_bytes(start);
    loop {
        let batches = node.replay(stream, next, PAGE)?;
        let Some((last, _)) = batches.last() else { break };
        // A snapshot comes whole and may go on from any number.
        let whole = batches[0].0 != next;
        next = last.saturating_add(1);
        for (seq, payload) in &batches {
            let frames = [&client[..], b"", topic, &seq.to_be_bytes(), payload];
            socket.send_multipart(frames, 0)?;
        }
        if whole || batches.len() < PAGE {
            break;
        }
    }
    let end: [&[u8]; 5] = [client, b"", b"", &[0xff; 8], b""];
    socket.send_multipart(end, 0)?;
    Ok(())
}
