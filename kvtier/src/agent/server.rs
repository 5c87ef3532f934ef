//! The agent's one loop: sockets in, answers out. Whatever waits for a disk is done by workers, who
//! leave word in the inbox.
//!
//! A session ends in two steps. Its engine is not listened to any more, and what it has queued is
//! dropped; when the last of its jobs has ended, the socket is closed. So an engine that sees its
//! socket closed knows that nothing writes to its memory any more.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::counts::{Counts, Stats, add};
use super::frame::{FRAME_BYTES, Reason};
use super::peer::{Peer, Word};
use super::session::Bounds;
use super::socket::{self, Received};
use crate::node::Tiers;
use crate::slot::lock;
use crate::store::Jobs;

/// How an agent is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where its socket is. Whoever may write to it may read and store blocks.
    pub socket: PathBuf,
    /// Permissions of the socket.
    pub mode: u32,
    /// Most connections at a time.
    pub sessions: usize,
    /// Threads that read and write.
    pub workers: usize,
    /// Loads, and as many stores, that wait for a worker.
    pub waiting: usize,
    /// A load is cut to parts of about so many bytes, for several workers.
    pub part_bytes: usize,
    /// Time for an engine to say hello.
    pub patience: Duration,
    /// How much one engine may have.
    pub bounds: Bounds,
}

impl Config {
    /// The defaults, at `socket`.
    pub fn at(socket: impl Into<PathBuf>) -> Config {
        Config {
            socket: socket.into(),
            mode: 0o660,
            sessions: 64,
            workers: 8,
            waiting: 4096,
            part_bytes: 4 << 20,
            patience: Duration::from_secs(5),
            bounds: Bounds::default(),
        }
    }
}

/// What workers leave for the loop.
#[derive(Debug)]
pub(super) struct Inbox {
    words: Mutex<Vec<(u64, Word)>>,
    bell: OwnedFd,
}

impl Inbox {
    pub fn put(&self, peer: u64, word: Word) {
        lock(&self.words).push((peer, word));
        self.ring();
    }

    fn ring(&self) {
        // The counter is at its limit only if the loop is awake already.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }
}

/// What sessions share.
pub(super) struct Shared {
    pub tiers: Arc<dyn Tiers>,
    pub config: Config,
    pub jobs: Arc<Jobs>,
    pub inbox: Arc<Inbox>,
    pub counts: Arc<Counts>,
    pub began: Instant,
}

/// An agent that runs. Dropping it ends it.
#[derive(Debug)]
pub struct Agent {
    socket: PathBuf,
    stop: Arc<AtomicBool>,
    inbox: Arc<Inbox>,
    jobs: Arc<Jobs>,
    counts: Arc<Counts>,
    threads: Vec<JoinHandle<()>>,
}

const BELL: u64 = 0;
const LISTENER: u64 = 1;
const FIRST_PEER: u64 = 2;

impl Agent {
    /// Listens, on threads of its own.
    ///
    /// # Errors
    ///
    /// Where another agent listens at the socket, or the system refuses.
    pub fn start(tiers: Arc<dyn Tiers>, config: Config) -> io::Result<Agent> {
        let listener = listen(&config.socket, config.mode)?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let inbox = Arc::new(Inbox { words: Mutex::default(), bell });
        let (counts, jobs) = (Arc::new(Counts::default()), Arc::new(Jobs::new(config.waiting)));
        let stop = Arc::new(AtomicBool::new(false));
        let (socket, workers) = (config.socket.clone(), config.workers);
        let shared = Shared {
            tiers,
            config,
            jobs: jobs.clone(),
            inbox: inbox.clone(),
            counts: counts.clone(),
            began: Instant::now(),
        };
        let mut agent = Agent { socket, stop: stop.clone(), inbox, jobs, counts, threads: Vec::new() };
        let mut server = Server::new(shared, listener)?;
        agent.spawn("kvtier-agent", move || server.run(&stop))?;
        for at in 0..workers {
            let jobs = agent.jobs.clone();
            agent.spawn(&format!("kvtier-io-{at}"), move || jobs.work())?;
        }
        Ok(agent)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(std::thread::Builder::new().name(name.to_owned()).spawn(run)?);
        Ok(())
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What it has done.
    pub fn stats(&self) -> Stats {
        self.counts.stats()
    }
}

impl Drop for Agent {
    /// Tells engines, waits for jobs that have begun, and takes the socket away.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.inbox.ring();
        let mut threads = self.threads.drain(..);
        if let Some(server) = threads.next() {
            let _ = server.join();
        }
        self.jobs.close();
        for worker in threads {
            let _ = worker.join();
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// A socket at `path`. One that a dead agent left there is replaced; one that is answered, or
/// anything that is not a socket, is not.
fn listen(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let open = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(there) if !there.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is something that is no socket"));
        }
        Ok(_) => match rustix::net::connect(&open()?, &address) {
            // A socket of another type is answered by nobody who talks as we do, but is in use.
            Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another agent listens there"));
            }
            Err(Errno::CONNREFUSED) => std::fs::remove_file(path)?,
            Err(error) => return Err(error.into()),
        },
    }
    let listener = open()?;
    rustix::net::bind(&listener, &address)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    rustix::net::listen(&listener, 64)?;
    Ok(listener)
}

struct Server {
    shared: Shared,
    epoll: OwnedFd,
    listener: OwnedFd,
    peers: HashMap<u64, Peer>,
    next: u64,
    buffer: Box<[u8; FRAME_BYTES]>,
    swept: Instant,
}

/// How often leases and silent connections are looked at.
const SWEEP: Duration = Duration::from_millis(500);
/// Frames read of one peer before another has its turn.
const TURN: usize = 16;

impl Server {
    fn new(shared: Shared, listener: OwnedFd) -> io::Result<Server> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let watch = |fd: BorrowedFd<'_>, name| {
            epoll::add(&epoll, fd, epoll::EventData::new_u64(name), epoll::EventFlags::IN)
        };
        watch(shared.inbox.bell.as_fd(), BELL)?;
        watch(listener.as_fd(), LISTENER)?;
        let buffer = vec![0; FRAME_BYTES].into_boxed_slice();
        let buffer = buffer.try_into().map_err(|_| io::ErrorKind::OutOfMemory)?;
        let swept = Instant::now();
        Ok(Server { shared, epoll, listener, peers: HashMap::new(), next: FIRST_PEER, buffer, swept })
    }

    fn run(&mut self, stop: &AtomicBool) {
        let mut events = Vec::with_capacity(64);
        while !stop.load(Ordering::Acquire) {
            self.wait(&mut events);
            for event in &events {
                match event.data.u64() {
                    BELL => self.words(),
                    LISTENER => self.accept(),
                    name => self.attend(name, event.flags),
                }
            }
            self.sweep();
        }
        let names: Vec<u64> = self.peers.keys().copied().collect();
        for name in names {
            self.end(name, Some((Reason::Closing, "the agent ends".to_owned())));
        }
        // Jobs that have begun write to engines' memory; sockets stay open until they have ended.
        while !self.peers.is_empty() {
            self.wait(&mut events);
            self.words();
        }
    }

    fn wait(&mut self, events: &mut Vec<epoll::Event>) {
        events.clear();
        // Without peers nothing has a time, and the wait has no end.
        let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: SWEEP.subsec_nanos().into() };
        let timeout = (!self.peers.is_empty()).then_some(&timeout);
        // An interrupted wait is tried again by the caller.
        let _ = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), timeout);
    }

    fn accept(&mut self) {
        loop {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = match rustix::net::accept_with(&self.listener, flags) {
                Ok(socket) => socket,
                Err(Errno::AGAIN) => return,
                // Out of descriptors, or memory: the connection stays, and so does the event.
                Err(_) => return std::thread::sleep(Duration::from_millis(10)),
            };
            if self.peers.len() >= self.shared.config.sessions {
                // A closed socket tells the engine to come again later.
                add(&self.shared.counts.turned_away, 1);
                continue;
            }
            let name = self.next;
            let data = epoll::EventData::new_u64(name);
            if epoll::add(&self.epoll, &socket, data, epoll::EventFlags::IN).is_ok() {
                self.next += 1;
                self.peers.insert(name, Peer::new(name, socket, self.shared.config.bounds));
            }
        }
    }

    fn attend(&mut self, name: u64, flags: epoll::EventFlags) {
        let Some(peer) = self.peers.get_mut(&name) else { return };
        let gone = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR) && !peer.listens();
        if gone || (flags.contains(epoll::EventFlags::OUT) && !peer.flush()) {
            return self.end(name, None);
        }
        for _ in 0..TURN {
            let Some(peer) = self.peers.get_mut(&name).filter(|peer| peer.listens()) else { break };
            let received = socket::receive(peer.socket(), &mut self.buffer, rustix::net::RecvFlags::DONTWAIT);
            let result = match received {
                Received::Nothing => break,
                Received::End => return self.end(name, None),
                Received::Oversized => {
                    return self.end(name, Some((Reason::Frame, "longer than a frame".to_owned())));
                }
                Received::Frame(bytes, fds) => peer.frame(&self.buffer[..bytes], fds, &self.shared),
            };
            match result {
                Ok(true) => {}
                Ok(false) => return self.end(name, None),
                Err(refusal) => return self.end(name, Some((refusal.reason, refusal.text))),
            }
        }
        self.watch(name);
    }

    /// Listens for what the peer is to do next: to read, or to take what it was sent.
    fn watch(&mut self, name: u64) {
        let Some(peer) = self.peers.get_mut(&name) else { return };
        if let Some(flags) = peer.wants() {
            let _ = epoll::modify(&self.epoll, peer.socket(), epoll::EventData::new_u64(name), flags);
        }
    }

    fn words(&mut self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.shared.inbox.bell, &mut count);
        let words = std::mem::take(&mut *lock(&self.shared.inbox.words));
        for (name, word) in words {
            let Some(peer) = self.peers.get_mut(&name) else { continue };
            match peer.word(word, &self.shared) {
                Ok(true) => self.watch(name),
                Ok(false) => self.end(name, None),
                Err(refusal) => self.end(name, Some((refusal.reason, refusal.text))),
            }
        }
    }

    /// Ends a session, or goes on with ending it.
    fn end(&mut self, name: u64, refusal: Option<(Reason, String)>) {
        let Some(peer) = self.peers.get_mut(&name) else { return };
        if peer.end(refusal, &self.shared) {
            let _ = epoll::delete(&self.epoll, peer.socket());
        }
        if peer.is_idle() {
            self.peers.remove(&name);
        }
    }

    fn sweep(&mut self) {
        if self.swept.elapsed() < SWEEP {
            return;
        }
        self.swept = Instant::now();
        let patience = self.shared.config.patience;
        for peer in self.peers.values_mut() {
            peer.expire(&self.shared);
        }
        let silent = |(name, peer): (&u64, &Peer)| peer.is_silent(patience).then_some(*name);
        let silent: Vec<u64> = self.peers.iter().filter_map(silent).collect();
        for name in silent {
            self.end(name, Some((Reason::Order, "no hello in time".to_owned())));
        }
    }
}
