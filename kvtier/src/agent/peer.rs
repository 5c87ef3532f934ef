//! One engine's connection: its session, its memory, and the one answer that it may not have taken
//! yet.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::pipe::PipeFlags;

use super::codec::{decode_request, encode_answer};
use super::counts::add;
use super::frame::{Answer, Leased, Outcome, Reason, Request, VERSION, Welcome, features, place};
use super::region::{Region, Shape};
use super::server::Shared;
use super::session::{Bounds, Opening, Refusal, Session, Step, Work};
use super::socket;
use super::work::{self, Site};
use crate::Lease;
use crate::node::{PoolId, Where};
use crate::policy::{Owner, Tier};
use crate::store::{StoreKey, Urgency};

/// What a worker leaves for the loop.
#[derive(Debug)]
pub(super) enum Word {
    /// The pool is there, and the region is mapped.
    Opened(Result<Opened, Refusal>),
    /// A job has ended.
    Ended(u64, Vec<Outcome>),
}

#[derive(Debug)]
pub(super) struct Opened {
    pool: PoolId,
    owner: Owner,
    region: Option<Arc<Region>>,
    arena: Option<(OwnedFd, u64)>,
    features: u64,
    block_bytes: usize,
}

#[derive(Debug)]
pub(super) struct Peer {
    name: u64,
    socket: OwnedFd,
    since: Instant,
    session: Session<Lease>,
    /// Once opened, if the engine has a region.
    site: Option<Site>,
    block_bytes: usize,
    alive: Arc<AtomicBool>,
    /// A worker makes its pool.
    opening: bool,
    /// The write end of a pipe that wakes the engine. Not an eventfd: whoever holds one can make
    /// the other's writes wait.
    bell: Option<OwnedFd>,
    /// Sent when the engine has taken what was sent before. There is one at most: no request is
    /// read while it waits.
    unsent: Option<(Vec<u8>, Vec<OwnedFd>)>,
    watched: EventFlags,
}

impl Peer {
    pub fn new(name: u64, socket: OwnedFd, bounds: Bounds) -> Peer {
        Peer {
            name,
            socket,
            since: Instant::now(),
            session: Session::new(bounds),
            site: None,
            block_bytes: 0,
            alive: Arc::new(AtomicBool::new(true)),
            opening: false,
            bell: None,
            unsent: None,
            watched: EventFlags::IN,
        }
    }

    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether its next frame can be read.
    pub fn listens(&self) -> bool {
        self.alive.load(Ordering::Acquire) && self.unsent.is_none()
    }

    /// What to watch its socket for, if that has changed.
    pub fn wants(&mut self) -> Option<EventFlags> {
        let wanted = if self.unsent.is_some() { EventFlags::OUT } else { EventFlags::IN };
        (std::mem::replace(&mut self.watched, wanted) != wanted).then_some(wanted)
    }

    /// Whether it has not said hello for so long.
    pub fn is_silent(&self, patience: Duration) -> bool {
        self.session.home().is_none() && !self.opening && self.since.elapsed() > patience
    }

    /// Whether it has ended, and nothing touches its memory any more.
    pub fn is_idle(&self) -> bool {
        !self.alive.load(Ordering::Acquire) && self.session.running() == 0 && !self.opening
    }

    /// Reads a frame. False where the engine is gone.
    pub fn frame(&mut self, frame: &[u8], mut fds: Vec<OwnedFd>, shared: &Shared) -> Result<bool, Refusal> {
        add(&shared.counts.frames, 1);
        let request = decode_request(frame)
            .map_err(|error| Refusal { reason: Reason::Frame, text: error.to_string() })?;
        // Before the session hears of it: a job that it has begun must be run.
        let region = fds.pop();
        let wants = matches!(&request, Request::Hello(hello) if hello.slots > 0);
        if !fds.is_empty() || region.is_some() != wants {
            let text = if wants { "one is wanted, for the region" } else { "none is wanted" };
            return Err(Refusal { reason: Reason::Descriptors, text: text.to_owned() });
        }
        let step = self.session.receive(&request, micros(shared))?;
        match step {
            Step::Nothing => Ok(true),
            Step::Goodbye => Ok(false),
            Step::Open(opening) => {
                self.open(opening, region, shared)?;
                Ok(true)
            }
            Step::Answer(answer) => Ok(self.send(&answer, Vec::new())),
            Step::Lookup(seq, keys) => {
                add(&shared.counts.lookup_keys, keys.len());
                let found = self.pool().map(|pool| shared.tiers.lookup(pool, &keys));
                let places = found.unwrap_or_default().into_iter().map(place_of).collect();
                Ok(self.send(&Answer::Places { seq, places }, Vec::new()))
            }
            Step::Touch(keys) => {
                add(&shared.counts.touch_keys, keys.len());
                if let Some(pool) = self.pool() {
                    shared.tiers.touch(pool, &keys);
                }
                Ok(true)
            }
            Step::Lease(seq, keys) => {
                let leases = self.lease(&keys, shared);
                Ok(self.send(&Answer::Leases { seq, leases }, Vec::new()))
            }
            Step::Stats(seq) => {
                let stale = self.session.take_stale();
                add(&shared.counts.leases_stale, stale as usize);
                let mut counts = shared.counts.stats().named();
                let loads = self.pool().map(|pool| shared.tiers.loads(pool)).unwrap_or_default();
                counts.extend([
                    ("pool_ram_blocks", loads.blocks[0]),
                    ("pool_disk_blocks", loads.blocks[1]),
                    ("pool_shared_blocks", loads.blocks[2]),
                    ("pool_copied_bytes", loads.copied_bytes),
                ]);
                Ok(self.send(&Answer::Stats { seq, counts }, Vec::new()))
            }
            Step::Run(work) => {
                self.run(work, shared)?;
                Ok(true)
            }
        }
    }

    fn pool(&self) -> Option<PoolId> {
        self.session.home().map(|home| home.0)
    }

    /// Making a pool reserves its space, so a worker does that.
    fn open(&mut self, opening: Opening, region: Option<OwnedFd>, shared: &Shared) -> Result<(), Refusal> {
        let (tiers, inbox, name) = (shared.tiers.clone(), shared.inbox.clone(), self.name);
        let open = move || {
            let refuse = |reason| move |text: String| Refusal { reason, text };
            let opened = (|| {
                let pool = tiers
                    .pool(opening.block_bytes)
                    .map_err(|error| refuse(Reason::Room)(error.to_string()))?;
                let owner = tiers
                    .owner(&opening.model, &opening.salt)
                    .map_err(|error| refuse(Reason::Room)(error.to_string()))?;
                tiers.expect(&opening.model, opening.fingerprint);
                let shape = Shape {
                    slots: opening.slots,
                    stride: opening.stride,
                    block_bytes: opening.block_bytes,
                    offset: opening.offset,
                };
                let region = region
                    .map(|file| Region::map(file, shape))
                    .transpose()
                    .map_err(|error| refuse(Reason::Region)(error.to_string()))?;
                let arena = tiers.arena(pool).filter(|_| opening.features & features::LEASES != 0);
                let features = if arena.is_some() { features::LEASES } else { 0 };
                let (region, block_bytes) = (region.map(Arc::new), opening.block_bytes);
                Ok(Opened { pool, owner, region, arena, features, block_bytes })
            })();
            inbox.put(name, Word::Opened(opened));
        };
        if !shared.jobs.submit(Urgency::Read, open) {
            return Err(Refusal { reason: Reason::TooMany, text: "too much waits".to_owned() });
        }
        self.opening = true;
        Ok(())
    }

    fn lease(&mut self, keys: &[StoreKey], shared: &Shared) -> Vec<Leased> {
        let Some(pool) = self.pool() else { return Vec::new() };
        let now = micros(shared) / 1000;
        let one = |key: &StoreKey| {
            let lease = shared.tiers.lease(pool, *key)?;
            let offset = lease.offset();
            self.session.lease(lease, offset, now)
        };
        let leases: Vec<Option<Leased>> = keys.iter().map(one).collect();
        add(&shared.counts.leases, leases.iter().flatten().count());
        leases.into_iter().map(|leased| leased.unwrap_or(Leased::NONE)).collect()
    }

    fn run(&self, work: Work, shared: &Shared) -> Result<(), Refusal> {
        let Some(site) = &self.site else {
            // The session knows no slots then, so that no job passes it.
            return Err(Refusal { reason: Reason::Slot, text: "no region".to_owned() });
        };
        add(&shared.counts.jobs, 1);
        let (inbox, name, job) = (shared.inbox.clone(), self.name, work.job);
        let part = shared.config.part_bytes;
        work::start(&shared.jobs, site, work, part, self.block_bytes, move |outcomes| {
            inbox.put(name, Word::Ended(job, outcomes));
        });
        Ok(())
    }

    /// Goes on with what a worker has done. False where the engine is gone.
    pub fn word(&mut self, word: Word, shared: &Shared) -> Result<bool, Refusal> {
        match word {
            Word::Opened(opened) => {
                self.opening = false;
                let opened = opened?;
                if !self.alive.load(Ordering::Acquire) {
                    return Ok(false);
                }
                self.welcome(opened, shared)
            }
            Word::Ended(job, outcomes) => {
                add(&shared.counts.jobs_ended, 1);
                let first = self.session.ended(job, outcomes, micros(shared));
                if !self.alive.load(Ordering::Acquire) {
                    return Ok(false);
                }
                if self.site.as_ref().is_some_and(|site| site.region.is_broken()) {
                    add(&shared.counts.regions_broken, 1);
                    return Err(Refusal { reason: Reason::Region, text: "it was cut".to_owned() });
                }
                if let Some(bell) = self.bell.as_ref().filter(|_| first) {
                    // A full pipe wakes the engine just as well.
                    let _ = rustix::io::write(bell, &[1]);
                }
                Ok(true)
            }
        }
    }

    fn welcome(&mut self, opened: Opened, shared: &Shared) -> Result<bool, Refusal> {
        let system = |error: rustix::io::Errno| Refusal { reason: Reason::Room, text: error.to_string() };
        let (ear, bell) =
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(system)?;
        self.bell = Some(bell);
        self.session.opened(opened.pool, opened.owner);
        self.block_bytes = opened.block_bytes;
        add(&shared.counts.sessions, 1);
        let bounds = shared.config.bounds;
        let answer = Answer::Welcome(Welcome {
            version: VERSION,
            features: opened.features,
            jobs: bounds.jobs,
            leases: bounds.leases,
            lease_ms: bounds.lease_ms,
            arena_bytes: opened.arena.as_ref().map_or(0, |arena| arena.1),
            sealed: opened.region.as_ref().is_some_and(|region| region.is_sealed()),
        });
        self.site = opened.region.map(|region| Site {
            tiers: shared.tiers.clone(),
            pool: opened.pool,
            owner: opened.owner,
            region,
            alive: self.alive.clone(),
            counts: shared.counts.clone(),
        });
        let mut fds = vec![ear];
        fds.extend(opened.arena.map(|arena| arena.0));
        Ok(self.send(&answer, fds))
    }

    /// Sends, or keeps it until there is room. False where the engine is gone.
    fn send(&mut self, answer: &Answer, fds: Vec<OwnedFd>) -> bool {
        self.unsent = Some((encode_answer(answer), fds));
        self.flush()
    }

    /// Sends what waits, if there is room. False where the engine is gone.
    pub fn flush(&mut self) -> bool {
        let Some((frame, fds)) = &self.unsent else { return true };
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
        match socket::send(&self.socket, frame, &fds) {
            Ok(true) => {
                self.unsent = None;
                true
            }
            Ok(false) => true,
            Err(_) => false,
        }
    }

    /// Stops listening. Returns whether it listened before.
    pub fn end(&mut self, refusal: Option<(Reason, String)>, shared: &Shared) -> bool {
        if !self.alive.swap(false, Ordering::AcqRel) {
            return false;
        }
        if self.session.home().is_some() {
            add(&shared.counts.sessions_ended, 1);
        }
        if let Some((reason, text)) = refusal {
            add(&shared.counts.refused, usize::from(reason != Reason::Closing));
            // For who reads it; what it did not take before is lost with the session.
            let _ = socket::send(&self.socket, &encode_answer(&Answer::Refused { reason, text }), &[]);
        }
        self.session.drop_leases();
        self.unsent = None;
        true
    }

    /// Ends leases whose time is up.
    pub fn expire(&mut self, shared: &Shared) {
        let ended = self.session.expire(micros(shared) / 1000);
        add(&shared.counts.leases_expired, ended);
        let stale = self.session.take_stale();
        add(&shared.counts.leases_stale, stale as usize);
    }
}

fn micros(shared: &Shared) -> u64 {
    shared.began.elapsed().as_micros() as u64
}

fn place_of(found: Where) -> u8 {
    match found {
        Where::Nowhere => place::NOWHERE,
        Where::Unknown => place::UNKNOWN,
        Where::In(Tier::Cpu) => place::RAM,
        Where::In(Tier::Disk) => place::DISK,
        Where::In(Tier::Shared) => place::SHARED,
    }
}
