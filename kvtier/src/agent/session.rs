//! What does a request mean, given what this engine said before? Pure: the caller looks blocks up,
//! reads and writes them, and tells when that has ended.
//!
//! ```text
//!            hello                opened
//!   Fresh ──────────▶ Opening ──────────────▶ Ready ──▶ lookups, jobs, leases
//! ```
//!
//! An error ends the session. Nothing it said is trusted: a slot is used only if the region has it
//! and no job excludes that, and there are never more jobs, ended jobs or leases than was agreed.

use std::collections::{HashMap, HashSet, VecDeque};

use super::frame::{Answer, Ended, FRAME_BYTES, Hello, Keys, Leased, Outcome, Reason, Request, VERSION};
use super::leases::Leases;
use crate::node::PoolId;
use crate::policy::{BlockId, Owner};
use crate::store::StoreKey;

/// How much one session may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Jobs that have not ended, or whose end was not polled.
    pub jobs: usize,
    /// Leases at a time.
    pub leases: usize,
    /// Milliseconds until a lease ends by itself.
    pub lease_ms: u64,
    /// Largest region, in bytes.
    pub region_bytes: u64,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { jobs: 1024, leases: 4096, lease_ms: 10_000, region_bytes: 1 << 40 }
    }
}

/// Why a session ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which kind.
    pub reason: Reason,
    /// For people.
    pub text: String,
}

fn refuse<T>(reason: Reason, text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { reason, text: text.into() })
}

/// A hello without what it was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Which features the engine wants.
    pub features: u64,
    /// What it calls itself.
    pub engine: String,
    /// The model, whose quota counts.
    pub model: String,
    /// The cache salt, whose quota counts.
    pub salt: String,
    /// What stands for the model in names of blocks.
    pub fingerprint: u128,
    /// Bytes per block.
    pub block_bytes: usize,
    /// Slots of the region, 0 for none.
    pub slots: u32,
    /// Bytes from one slot to the next.
    pub stride: usize,
    /// Bytes before the first slot.
    pub offset: u64,
}

/// Which way a job's bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the engine's region.
    Load,
    /// From the engine's region, behind this block.
    Store(Option<BlockId>),
}

/// Bytes to be moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// The engine's number for it.
    pub job: u64,
    /// Which way.
    pub way: Way,
    /// Which blocks.
    pub keys: Vec<StoreKey>,
    /// In which slots, one per block. Each is in the region, and no other job writes to it.
    pub slots: Vec<u32>,
}

/// What a request asks the caller to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Nothing,
    /// Map the region, make the pool, and call [`Session::opened`].
    Open(Opening),
    /// Look up, and answer with places.
    Lookup(u64, Vec<StoreKey>),
    /// Count a use.
    Touch(Vec<StoreKey>),
    /// Lease, and give each to [`Session::lease`].
    Lease(u64, Vec<StoreKey>),
    /// Move bytes, and call [`Session::ended`].
    Run(Work),
    /// Say what the agent has done.
    Stats(u64),
    /// Send this.
    Answer(Answer),
    /// The engine leaves.
    Goodbye,
}

/// What is known of an engine since its hello.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    fingerprint: u128,
    hash_bytes: usize,
    groups: u32,
    slots: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Fresh,
    Opening,
    Ready { pool: PoolId, owner: Owner },
}

#[derive(Debug)]
struct Running {
    way: Way,
    slots: Vec<u32>,
    began: u64,
}

/// One engine's side of the agent. `L` is a lease.
#[derive(Debug)]
pub struct Session<L> {
    bounds: Bounds,
    phase: Phase,
    known: Known,
    jobs: HashMap<u64, Running>,
    /// Slots that loads write to.
    written: HashSet<u32>,
    /// Slots that stores read, and how many do.
    read: HashMap<u32, u32>,
    ended: VecDeque<Ended>,
    leases: Leases<L>,
    /// Releases of what was not held.
    stale: u64,
}

impl<L> Session<L> {
    /// A session that has heard nothing yet.
    pub fn new(bounds: Bounds) -> Session<L> {
        Session {
            bounds,
            phase: Phase::Fresh,
            known: Known { fingerprint: 0, hash_bytes: 1, groups: 0, slots: 0 },
            jobs: HashMap::new(),
            written: HashSet::new(),
            read: HashMap::new(),
            ended: VecDeque::new(),
            leases: Leases::new(bounds.leases, bounds.lease_ms),
            stale: 0,
        }
    }

    /// What `request` asks for. `now` is in microseconds, of any clock that does not go back.
    ///
    /// # Errors
    ///
    /// [`Refusal`]; the session is to be ended.
    pub fn receive(&mut self, request: &Request<'_>, now: u64) -> Result<Step, Refusal> {
        match (request, &self.phase) {
            (Request::Goodbye, _) => return Ok(Step::Goodbye),
            (Request::Hello(hello), Phase::Fresh) => return self.hello(hello),
            (Request::Hello(_), _) => return refuse(Reason::Order, "a second hello"),
            (_, Phase::Fresh | Phase::Opening) => return refuse(Reason::Order, "before the welcome"),
            (_, Phase::Ready { .. }) => {}
        }
        Ok(match *request {
            Request::Lookup { seq, keys } => Step::Lookup(seq, self.keys(keys)?),
            Request::Touch { keys } => Step::Touch(self.keys(keys)?),
            Request::Lease { seq, keys } => Step::Lease(seq, self.keys(keys)?),
            Request::Load { job, keys, slots } => {
                let (keys, slots) = (self.keys(keys)?, slots.iter().collect());
                self.begin(Work { job, way: Way::Load, keys, slots }, now)?
            }
            Request::Store { job, after, keys, slots } => {
                let after = after.map(|key| self.keys(key)).transpose()?;
                let after = match after.as_deref() {
                    None => None,
                    Some([key]) => Some(key.id()),
                    Some(_) => return refuse(Reason::Name, "more than one block before the first"),
                };
                let (keys, slots) = (self.keys(keys)?, slots.iter().collect());
                self.begin(Work { job, way: Way::Store(after), keys, slots }, now)?
            }
            Request::Poll { seq } => Step::Answer(self.done(seq)),
            Request::Release { leases } => {
                let (leases, rest) = leases.as_chunks::<{ Leased::BYTES }>();
                if !rest.is_empty() {
                    return refuse(Reason::Frame, "leases cut off");
                }
                for leased in leases {
                    self.stale += u64::from(!self.leases.release(Leased::unpack(leased)));
                }
                Step::Nothing
            }
            Request::Stats { seq } => Step::Stats(seq),
            Request::Hello(_) | Request::Goodbye => Step::Nothing,
        })
    }

    fn hello(&mut self, hello: &Hello<'_>) -> Result<Step, Refusal> {
        if hello.version != VERSION {
            return refuse(Reason::Version, format!("version {}, not {VERSION}", hello.version));
        }
        let bytes = u64::from(hello.slots) * hello.stride as u64;
        if bytes > self.bounds.region_bytes {
            return refuse(Reason::Region, format!("{bytes} bytes, at most {}", self.bounds.region_bytes));
        }
        if hello.slots > 0 && hello.stride < hello.block_bytes {
            return refuse(Reason::Region, format!("stride {} of {} bytes", hello.stride, hello.block_bytes));
        }
        self.phase = Phase::Opening;
        self.known = Known {
            fingerprint: hello.fingerprint,
            hash_bytes: hello.hash_bytes,
            groups: hello.groups.len() as u32,
            slots: hello.slots,
        };
        Ok(Step::Open(Opening {
            features: hello.features,
            engine: hello.engine.to_owned(),
            model: hello.model.to_owned(),
            salt: hello.salt.to_owned(),
            fingerprint: hello.fingerprint,
            block_bytes: hello.block_bytes,
            slots: hello.slots,
            stride: hello.stride,
            offset: hello.offset,
        }))
    }

    /// The engine's blocks are in `pool` and count as `owner`'s.
    pub fn opened(&mut self, pool: PoolId, owner: Owner) {
        self.phase = Phase::Ready { pool, owner };
    }

    /// The pool and owner, once opened.
    pub fn home(&self) -> Option<(PoolId, Owner)> {
        match self.phase {
            Phase::Ready { pool, owner } => Some((pool, owner)),
            Phase::Fresh | Phase::Opening => None,
        }
    }

    fn keys(&self, keys: Keys<'_>) -> Result<Vec<StoreKey>, Refusal> {
        let known = &self.known;
        let Some(split) = keys.split(known.hash_bytes) else {
            return refuse(Reason::Frame, format!("{} bytes are not keys, or too many", keys.0.len()));
        };
        let key = |(hash, group): (&[u8], u32)| {
            if group >= known.groups {
                return refuse(Reason::Name, format!("group {group} of {}", known.groups));
            }
            StoreKey::new(known.fingerprint, group, hash)
                .map_err(|error| Refusal { reason: Reason::Name, text: error.to_string() })
        };
        split.map(key).collect()
    }

    fn begin(&mut self, work: Work, now: u64) -> Result<Step, Refusal> {
        if work.keys.len() != work.slots.len() || work.keys.is_empty() {
            let text = format!("{} keys for {} slots", work.keys.len(), work.slots.len());
            return refuse(Reason::Frame, text);
        }
        if self.jobs.len() + self.ended.len() >= self.bounds.jobs {
            return refuse(Reason::TooMany, format!("more than {} jobs", self.bounds.jobs));
        }
        if self.jobs.contains_key(&work.job) {
            return refuse(Reason::Name, format!("job {} twice", work.job));
        }
        if let Some(slot) = work.slots.iter().find(|slot| **slot >= self.known.slots) {
            return refuse(Reason::Slot, format!("slot {slot} of {}", self.known.slots));
        }
        // Two mutable views of one slot must not exist, nor one beside a shared one.
        let mut own = HashSet::with_capacity(work.slots.len());
        let mut free = |slot: &u32| match work.way {
            Way::Load => !self.written.contains(slot) && !self.read.contains_key(slot) && own.insert(*slot),
            Way::Store(_) => !self.written.contains(slot),
        };
        if let Some(slot) = work.slots.iter().find(|slot| !free(slot)) {
            return refuse(Reason::Slot, format!("slot {slot} is in use"));
        }
        match work.way {
            Way::Load => self.written.extend(&work.slots),
            Way::Store(_) => work.slots.iter().for_each(|slot| *self.read.entry(*slot).or_default() += 1),
        }
        self.jobs.insert(work.job, Running { way: work.way, slots: work.slots.clone(), began: now });
        Ok(Step::Run(work))
    }

    /// A job has ended: nothing touches its slots any more. Returns whether the engine is to be
    /// told that there is something to poll; false as well where there was already.
    pub fn ended(&mut self, job: u64, outcomes: Vec<Outcome>, now: u64) -> bool {
        let Some(running) = self.jobs.remove(&job) else { return false };
        for slot in &running.slots {
            match running.way {
                Way::Load => {
                    self.written.remove(slot);
                }
                Way::Store(_) => {
                    if let Some(count) = self.read.get_mut(slot) {
                        *count -= 1;
                        if *count == 0 {
                            self.read.remove(slot);
                        }
                    }
                }
            }
        }
        self.ended.push_back(Ended { job, outcomes, micros: now.saturating_sub(running.began) });
        self.ended.len() == 1
    }

    /// Jobs that have not ended.
    pub fn running(&self) -> usize {
        self.jobs.len()
    }

    /// Whether something can be polled.
    pub fn has_ended(&self) -> bool {
        !self.ended.is_empty()
    }

    fn done(&mut self, seq: u64) -> Answer {
        let mut bytes = 32;
        let mut ended = Vec::new();
        while let Some(end) = self.ended.front() {
            bytes += end.outcomes.len() + 32;
            if bytes > FRAME_BYTES && !ended.is_empty() {
                break;
            }
            ended.extend(self.ended.pop_front());
        }
        Answer::Done { seq, more: !self.ended.is_empty(), ended }
    }

    /// Keeps a lease of the block at `offset` of the arena, at `now` milliseconds. `None` where
    /// there are too many.
    pub fn lease(&mut self, lease: L, offset: u64, now: u64) -> Option<Leased> {
        self.leases.give(lease, offset, now)
    }

    /// Ends leases whose time is up at `now` milliseconds.
    pub fn expire(&mut self, now: u64) -> usize {
        self.leases.expire(now)
    }

    /// Ends all leases: the engine is gone.
    pub fn drop_leases(&mut self) {
        self.leases = Leases::new(0, 0);
    }

    /// Leases held.
    pub fn leases(&self) -> usize {
        self.leases.len()
    }

    /// Releases of what was not held, since the last call.
    pub fn take_stale(&mut self) -> u64 {
        std::mem::take(&mut self.stale)
    }
}
