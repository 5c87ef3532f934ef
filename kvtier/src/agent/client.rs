//! The engine's side of the socket, for engines written in Rust, tests and measurements. That for
//! Python is in `kvtier/python`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use memmap2::{MmapOptions, MmapRaw};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::Timeout;
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};

use super::codec::{FrameError, Reply, decode_answer, encode_request};
use super::frame::{Ended, FRAME_BYTES, Hello, Keys, Leased, Request, SlotList, Welcome};
use super::socket::{self, Received};

/// A call came to nothing. The session is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The system refuses.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The agent is gone. Nothing writes to the region any more.
    #[error("the agent is gone")]
    Gone,
    /// The agent does not answer. It may still write to slots of jobs that have not ended.
    #[error("no answer in time")]
    Silent,
    /// The agent ends the session.
    #[error("refused ({reason}): {text}")]
    Refused {
        /// The number of a [`super::Reason`].
        reason: u64,
        /// Why.
        text: String,
    },
    /// An answer cannot be read.
    #[error("bad answer: {0}")]
    Frame(#[from] FrameError),
    /// An answer to something else.
    #[error("an answer to something else")]
    Other,
}

/// How to reach an agent.
#[derive(Clone, Copy, Debug)]
pub struct Connect<'a> {
    /// Its socket.
    pub socket: &'a Path,
    /// The region's file, if there is a region.
    pub region: Option<BorrowedFd<'a>>,
    /// Longest wait for an answer.
    pub patience: Duration,
}

/// A session with an agent.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    ear: OwnedFd,
    arena: Option<MmapRaw>,
    welcome: Welcome,
    patience: Duration,
    seq: u64,
    buffer: Box<[u8; FRAME_BYTES]>,
}

fn io_error(what: &'static str) -> impl Fn(rustix::io::Errno) -> ClientError {
    move |error| ClientError::Io { what, source: error.into() }
}

/// Waits until `fd` is ready. False where it is not in time.
fn ready(fd: impl AsFd, flags: PollFlags, patience: Duration) -> Result<bool, ClientError> {
    let mut fds = [PollFd::new(&fd, flags)];
    let time = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: patience.subsec_nanos().into() };
    Ok(poll(&mut fds, Some(&time)).map_err(io_error("wait"))? > 0)
}

impl Client {
    /// Says hello.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn connect(to: Connect<'_>, hello: &Hello<'_>) -> Result<Client, ClientError> {
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(io_error("make a socket"))?;
        rustix::net::sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(to.patience))
            .map_err(io_error("set a time"))?;
        let address = SocketAddrUnix::new(to.socket).map_err(io_error("name the socket"))?;
        rustix::net::connect(&socket, &address).map_err(io_error("connect"))?;
        let fds: Vec<BorrowedFd<'_>> = to.region.into_iter().collect();
        let frame = encode_request(&Request::Hello(hello.clone()));
        let sent = socket::send(&socket, &frame, &fds);
        if !sent.map_err(|source| ClientError::Io { what: "say hello", source })? {
            return Err(ClientError::Silent);
        }
        let mut buffer = zeros();
        let (reply, fds) = receive(&socket, &mut buffer)?;
        let Reply::Welcome(welcome) = reply else { return Err(ClientError::Other) };
        let mut fds = fds.into_iter();
        let ear = fds.next().ok_or(ClientError::Other)?;
        let map = |file| MmapOptions::new().len(welcome.arena_bytes as usize).map_raw_read_only(&file);
        let arena = fds.next().map(map).transpose();
        let arena = arena.map_err(|source| ClientError::Io { what: "map the arena", source })?;
        Ok(Client { socket, ear, arena, welcome, patience: to.patience, seq: 0, buffer })
    }

    /// What the agent offers.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    fn send(&self, request: &Request<'_>) -> Result<(), ClientError> {
        let frame = encode_request(request);
        let send = || {
            socket::send(&self.socket, &frame, &[]).map_err(|source| ClientError::Io { what: "send", source })
        };
        if send()? || (ready(&self.socket, PollFlags::OUT, self.patience)? && send()?) {
            return Ok(());
        }
        Err(ClientError::Silent)
    }

    fn ask(&mut self, request: &Request<'_>) -> Result<Reply, ClientError> {
        self.send(request)?;
        receive(&self.socket, &mut self.buffer).map(|(reply, _)| reply)
    }

    fn next(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    /// Where each of some keys can be had: a [`super::place`] each.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn lookup(&mut self, keys: &[u8]) -> Result<Vec<u8>, ClientError> {
        let seq = self.next();
        match self.ask(&Request::Lookup { seq, keys: Keys(keys) })? {
            Reply::Places { seq: answered, places } if answered == seq => Ok(places),
            _ => Err(ClientError::Other),
        }
    }

    /// A request wants this chain.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn touch(&self, keys: &[u8]) -> Result<(), ClientError> {
        self.send(&Request::Touch { keys: Keys(keys) })
    }

    /// Reads blocks to slots. The end is told by [`poll`](Self::poll).
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn load(&self, job: u64, keys: &[u8], slots: &[u32]) -> Result<(), ClientError> {
        let slots = pack(slots);
        self.send(&Request::Load { job, keys: Keys(keys), slots: SlotList(&slots) })
    }

    /// Stores a chain that continues `after`. The end is told by [`poll`](Self::poll).
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn store(
        &self,
        job: u64,
        after: Option<&[u8]>,
        keys: &[u8],
        slots: &[u32],
    ) -> Result<(), ClientError> {
        let slots = pack(slots);
        self.send(&Request::Store { job, after: after.map(Keys), keys: Keys(keys), slots: SlotList(&slots) })
    }

    /// Jobs that have ended since the last call, after waiting for one up to `patience`.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn poll(&mut self, patience: Duration) -> Result<Vec<Ended>, ClientError> {
        if !ready(&self.ear, PollFlags::IN, patience)? {
            return Ok(Vec::new());
        }
        let mut bells = [0; 64];
        if rustix::io::read(&self.ear, &mut bells) == Ok(0) {
            return Err(ClientError::Gone);
        }
        let mut all = Vec::new();
        loop {
            let seq = self.next();
            match self.ask(&Request::Poll { seq })? {
                Reply::Done { seq: answered, more, ended } if answered == seq => {
                    all.extend(ended);
                    if !more {
                        return Ok(all);
                    }
                }
                _ => return Err(ClientError::Other),
            }
        }
    }

    /// Leases blocks. `None` for those that are not in RAM, or where there are too many leases.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn lease(&mut self, keys: &[u8]) -> Result<Vec<Option<Leased>>, ClientError> {
        let seq = self.next();
        match self.ask(&Request::Lease { seq, keys: Keys(keys) })? {
            Reply::Leases { seq: answered, leases } if answered == seq => {
                Ok(leases.into_iter().map(|leased| Some(leased).filter(|l| l.place_is_real())).collect())
            }
            _ => Err(ClientError::Other),
        }
    }

    /// Copies a leased block's first bytes. False where the arena does not have it.
    pub fn read(&self, leased: Leased, into: &mut [u8]) -> bool {
        let Some(arena) = &self.arena else { return false };
        let Ok(at) = usize::try_from(leased.offset) else { return false };
        if at.checked_add(into.len()).is_none_or(|end| end > arena.len()) {
            return false;
        }
        // SAFETY: in the map; the agent writes nothing there as long as the lease lasts, and the
        // copy is of bytes, for which any value is right.
        unsafe { std::ptr::copy_nonoverlapping(arena.as_ptr().add(at), into.as_mut_ptr(), into.len()) };
        true
    }

    /// Gives leases back.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn release(&self, leases: &[Leased]) -> Result<(), ClientError> {
        let packed: Vec<u8> = leases.iter().flat_map(|leased| leased.pack()).collect();
        self.send(&Request::Release { leases: &packed })
    }

    /// What the agent has done.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn stats(&mut self) -> Result<Vec<(String, u64)>, ClientError> {
        let seq = self.next();
        match self.ask(&Request::Stats { seq })? {
            Reply::Stats { seq: answered, counts } if answered == seq => Ok(counts),
            _ => Err(ClientError::Other),
        }
    }
}

/// Waits for the socket's own time at most.
fn receive(socket: &OwnedFd, buffer: &mut [u8; FRAME_BYTES]) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
    match socket::receive(socket, buffer, RecvFlags::empty()) {
        Received::Frame(bytes, fds) => match decode_answer(&buffer[..bytes])? {
            Reply::Refused { reason, text } => Err(ClientError::Refused { reason, text }),
            reply => Ok((reply, fds)),
        },
        Received::End => Err(ClientError::Gone),
        Received::Nothing => Err(ClientError::Silent),
        Received::Oversized => Err(ClientError::Other),
    }
}

fn zeros() -> Box<[u8; FRAME_BYTES]> {
    let bytes = vec![0; FRAME_BYTES].into_boxed_slice();
    bytes.try_into().unwrap_or_else(|_| unreachable!("it was made with that length"))
}

fn pack(slots: &[u32]) -> Vec<u8> {
    slots.iter().flat_map(|slot| slot.to_le_bytes()).collect()
}

impl Leased {
    fn place_is_real(&self) -> bool {
        *self != Leased::NONE
    }
}
