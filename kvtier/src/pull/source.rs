//! The side that has blocks: listens, and gives what it is asked for.
//!
//! A thread accepts, and each connection has one of its own, which answers a request after the other.
//! What a connection holds of payloads is a megabyte, or one block.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::frame::{BlockHead, Frame, MOST_BYTES, MOST_ROWS};
use super::secret::Secret;
use super::session::{Generation, admit};
use super::wire::{Wire, WireError};
use crate::node::Node;
use crate::slot::lock;
use crate::store::StoreKey;

/// How long a connection may be without a request.
const IDLE: Duration = Duration::from_secs(60);
/// How often it is looked whether to stop.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// How a source is set up.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// What those that pull must know.
    pub secret: Secret,
    /// Connections at a time; more are closed at once.
    pub connections: usize,
    /// How long a greeting, a request or a block may take.
    pub patience: Duration,
}

/// What a source has done.
#[derive(Debug, Default)]
pub struct SourceCounts {
    /// Connections of those who know the secret.
    pub admitted: AtomicU64,
    /// Connections of others, of too many, and of those that said what they should not.
    pub refused: AtomicU64,
    /// Blocks given.
    pub blocks: AtomicU64,
    /// Blocks asked for that were not there.
    pub missing: AtomicU64,
}

/// A source that listens. Dropping it ends its connections.
#[derive(Debug)]
pub struct Source {
    address: SocketAddr,
    counts: Arc<SourceCounts>,
    stop: Arc<AtomicBool>,
    open: Arc<Open>,
    acceptor: Option<JoinHandle<()>>,
}

/// Connections that are open, to be ended, and the threads that serve them.
#[derive(Debug, Default)]
struct Open(Mutex<Vec<(TcpStream, JoinHandle<()>)>>);

impl Source {
    /// Gives `node`'s blocks to who connects to `listener`.
    ///
    /// # Errors
    ///
    /// Where the system refuses.
    pub fn start(node: Arc<Node>, listener: TcpListener, config: SourceConfig) -> io::Result<Source> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let (counts, stop) = (Arc::<SourceCounts>::default(), Arc::<AtomicBool>::default());
        let open = Arc::<Open>::default();
        let server = Server { node, config, counts: counts.clone(), stop: stop.clone(), open: open.clone() };
        let run = move || Arc::new(server).accept(&listener);
        let acceptor = std::thread::Builder::new().name("kvtier-source".into()).spawn(run)?;
        Ok(Source { address, counts, stop, open, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has done.
    pub fn counts(&self) -> &SourceCounts {
        &self.counts
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // A thread that panicked has said so, here and below.
        let _ = self.acceptor.take().map(JoinHandle::join);
        for (stream, serving) in lock(&self.open.0).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
            let _ = serving.join();
        }
    }
}

struct Server {
    node: Arc<Node>,
    config: SourceConfig,
    counts: Arc<SourceCounts>,
    stop: Arc<AtomicBool>,
    open: Arc<Open>,
}

impl Server {
    fn accept(self: Arc<Self>, listener: &TcpListener) {
        while !self.stop.load(Ordering::Acquire) {
            let _ = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&LOOK));
            match listener.accept() {
                Ok((stream, _)) => {
                    if self.begin(stream).is_err() {
                        self.counts.refused.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Too many files, or who connected is gone: the next may be served.
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn begin(self: &Arc<Self>, stream: TcpStream) -> Result<(), WireError> {
        let mut open = lock(&self.open.0);
        open.retain(|(_, serving)| !serving.is_finished());
        if open.len() >= self.config.connections {
            return Err(io::Error::from(io::ErrorKind::QuotaExceeded).into());
        }
        let wire = Wire::new(stream, self.config.patience)?;
        let (handle, server) = (wire.handle()?, Arc::clone(self));
        let run = move || server.serve(wire);
        open.push((handle, std::thread::Builder::new().name("kvtier-give".into()).spawn(run)?));
        Ok(())
    }

    fn serve(&self, mut wire: Wire) {
        let Ok(mut generation) = admit(&mut wire, &self.config.secret, self.config.patience) else {
            self.counts.refused.fetch_add(1, Ordering::Relaxed);
            return;
        };
        self.counts.admitted.fetch_add(1, Ordering::Relaxed);
        while !self.stop.load(Ordering::Acquire) {
            match self.answer(&mut wire, &mut generation) {
                Ok(()) => {}
                Err(WireError::Malformed) => {
                    self.counts.refused.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                // It hung up, or is as good as gone.
                Err(_) => return,
            }
        }
    }

    fn answer(&self, wire: &mut Wire, generation: &mut Generation) -> Result<(), WireError> {
        wire.wait(IDLE)?;
        wire.within(self.config.patience);
        match wire.hear(MOST_BYTES)? {
            Frame::Find { models, shorts } => {
                let found = self.node.lendable(&models, &shorts, MOST_ROWS);
                wire.say(&Frame::Found(found))
            }
            Frame::Get { block_bytes, keys } => {
                self.give(wire, generation.next(), block_bytes as usize, &keys)
            }
            Frame::Hello(_) | Frame::Challenge(_) | Frame::Proof(_) | Frame::Welcome(_) | Frame::Found(_) => {
                Err(WireError::Malformed)
            }
        }
    }

    fn give(
        &self,
        wire: &mut Wire,
        generation: u64,
        block_bytes: usize,
        keys: &[StoreKey],
    ) -> Result<(), WireError> {
        self.node.lend(block_bytes, keys, |at, payload| {
            wire.within(self.config.patience);
            let checksum = payload.map(|payload| keys[at].checksum(generation, payload));
            let payload = payload.unwrap_or_default();
            let count = if checksum.is_some() { &self.counts.blocks } else { &self.counts.missing };
            count.fetch_add(1, Ordering::Relaxed);
            let head = BlockHead { at: at as u16, checksum }.encode(payload.len());
            wire.write(&head, payload)
        })
    }
}
