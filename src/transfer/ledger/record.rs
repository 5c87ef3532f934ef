//! What is known of one transfer?
//!
//! A record is everything: what is reserved, when it ends and what may still happen follow
//! from it, so that a record read back after a crash is all it takes to go on.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::transfer::types::{Choice, Connector, Endpoint, LegKind, Purpose, Reason};

/// Unix time in milliseconds, on the ledger's clock.
pub type Millis = u64;

/// A transfer's name: the hash of its request id, which tells every replica whose it is, and a
/// number that nobody guesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TransferId {
    /// Hash of the request id.
    pub request: u64,
    /// Tells apart transfers of one request.
    pub number: u64,
}

/// Where a transfer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Decided and reserved; nobody has begun.
    Planned,
    /// The prefill pod works on it.
    Prefilling,
    /// Prefill is done; the engine keeps the blocks under its lease.
    Ready,
    /// The request is with the pod that pulls, or receives.
    Pulling,
    /// Over: it worked.
    Done,
    /// Over: it did not.
    Failed,
    /// Over: nobody went on with it in time.
    Expired,
    /// Over: nobody wants it any more.
    Cancelled,
    /// Over here: another replica has taken it over.
    Superseded,
}

/// Why a transfer ended, or its plan is stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The caller said so.
    Cancelled,
    /// Who asked for the answer is gone.
    ClientGone,
    /// Nobody began in time.
    NeverStarted,
    /// Prefill took too long.
    PrefillTooSlow,
    /// Nobody came for the blocks in time.
    NeverPulled,
    /// The engine's lease ran out.
    LeaseExpired,
    /// Moving took too long.
    PullTooSlow,
    /// All together took too long.
    TooLate,
    /// A pod that is read from is gone.
    SourceGone,
    /// The pod that is written to is gone.
    DestinationGone,
    /// A pod that is read from began anew.
    SourceRestarted,
    /// The pod that is written to began anew.
    DestinationRestarted,
    /// What was to be read was evicted.
    SourceEvicted,
    /// The whole cache that was to be read was cleared.
    SourceCleared,
    /// The decode pod refused the request.
    Rejected,
    /// The prefill pod failed.
    PrefillFailed,
    /// The blocks could not be read.
    LoadFailed,
    /// The pods do not understand each other's blocks.
    Incompatible,
    /// Another replica goes on with it.
    Superseded,
    /// Something else.
    Other,
}

/// Blocks that are kept on a pod and nobody comes for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Strand {
    /// Where.
    pub pod: Endpoint,
    /// How much.
    pub bytes: u64,
    /// Since when it is known that nobody comes.
    pub since: Millis,
    /// Until when the engine keeps them.
    pub until: Millis,
}

/// One transfer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub id: TransferId,
    /// The caller's name for the request; with `purpose` the key of idempotence.
    pub request_id: Arc<str>,
    /// What for.
    pub purpose: Purpose,
    /// Whose.
    pub tenant: Arc<str>,
    /// Of which model.
    pub model: Arc<str>,
    /// How blocks travel.
    pub connector: Connector,
    /// Hash of the question, to tell a repetition from another question.
    pub fingerprint: u64,
    /// What was decided.
    pub choice: Choice,
    /// Why.
    pub reason: Reason,
    /// Why, as a sentence.
    pub explanation: Arc<str>,
    /// What comes next, if this fails.
    pub alternatives: Vec<Choice>,
    /// Where it stands.
    pub state: State,
    /// Where it stood when it ended.
    pub ended_in: Option<State>,
    /// Which plan this is, from 1. Fences callers.
    pub attempt: u32,
    /// Which owner this is. Fences owners: replicas and their lives.
    pub epoch: u64,
    /// When it was planned first.
    pub planned_at: Millis,
    /// When it came into its state.
    pub changed_at: Millis,
    /// When its state ends by itself.
    pub deadline: Millis,
    /// When it ends, whatever happens. Never moved.
    pub overall: Millis,
    /// When the engine stops keeping the blocks, as far as that was said.
    pub lease_ends: Option<Millis>,
    /// Whether prefill was reported as done.
    pub prefill_done: bool,
    /// What the index saw that made the plan stale.
    pub stale: Option<Cause>,
    /// Whether it went through a restart.
    pub recovered: bool,
    /// Whether a watcher was told that the lease ends.
    pub warned: bool,
    /// Why it ended.
    pub cause: Option<Cause>,
    /// What it left behind and is still there.
    pub strand: Option<Strand>,
    /// What the prefill engine answered, JSON.
    pub prefill_answer: Option<Arc<str>>,
    /// What the caller wants handed through, JSON.
    pub pass_through: Option<Arc<str>>,
}

/// Who keeps the blocks where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Enforcement {
    /// Nobody is known to.
    Advisory,
    /// The engine said that it does, for a while.
    EngineAcked,
    /// kvd does, in a tier of its own.
    Enforced,
}

impl Record {
    /// Whether it is under way, and so has something reserved.
    pub fn live(&self) -> bool {
        !self.state.terminal()
    }

    /// How far it was by what callers said: where it ended, if it was only time or another replica
    /// that ended it.
    pub fn came_to(&self) -> State {
        let not_by_word = self.cause.is_some_and(|c| c.by_time() || c == Cause::Superseded);
        self.ended_in.filter(|_| not_by_word).unwrap_or(self.state)
    }

    /// Who keeps its blocks at `now`, as far as callers said. Never [`Enforcement::Enforced`]: what kvd pins in
    /// tiers of nodes is no part of the record.
    pub fn enforcement(&self, now: Millis) -> Enforcement {
        match self.lease_ends {
            Some(ends) if now < ends && self.live() => Enforcement::EngineAcked,
            Some(_) | None => Enforcement::Advisory,
        }
    }

    /// The pod whose blocks the engine keeps once prefill is done, and how many bytes.
    pub fn pinned(&self) -> Option<(&Endpoint, u64)> {
        let handover = self.choice.legs.iter().find(|l| l.kind == LegKind::Handover)?;
        Some((&handover.from, handover.pinned_bytes))
    }

    /// Whether `pod` takes part.
    pub fn touches(&self, pod: &Endpoint) -> bool {
        self.pods().any(|p| p == pod)
    }

    /// Everyone who takes part, some more than once.
    pub fn pods(&self) -> impl Iterator<Item = &Endpoint> {
        let Choice { prefill, decode, legs, .. } = &self.choice;
        legs.iter().flat_map(|l| [&l.from, &l.to]).chain(prefill).chain(decode)
    }
}

impl State {
    /// Every state.
    pub const ALL: [State; 9] = [
        State::Planned,
        State::Prefilling,
        State::Ready,
        State::Pulling,
        State::Done,
        State::Failed,
        State::Expired,
        State::Cancelled,
        State::Superseded,
    ];

    /// Whether nothing follows.
    pub fn terminal(self) -> bool {
        match self {
            State::Planned | State::Prefilling | State::Ready | State::Pulling => false,
            State::Done | State::Failed | State::Expired | State::Cancelled | State::Superseded => true,
        }
    }

    /// Its name in answers and metrics.
    pub fn name(self) -> &'static str {
        match self {
            State::Planned => "planned",
            State::Prefilling => "prefilling",
            State::Ready => "ready",
            State::Pulling => "pulling",
            State::Done => "done",
            State::Failed => "failed",
            State::Expired => "expired",
            State::Cancelled => "cancelled",
            State::Superseded => "superseded",
        }
    }
}

impl Cause {
    /// Every cause.
    pub const ALL: [Cause; 20] = [
        Cause::Cancelled,
        Cause::ClientGone,
        Cause::NeverStarted,
        Cause::PrefillTooSlow,
        Cause::NeverPulled,
        Cause::LeaseExpired,
        Cause::PullTooSlow,
        Cause::TooLate,
        Cause::SourceGone,
        Cause::DestinationGone,
        Cause::SourceRestarted,
        Cause::DestinationRestarted,
        Cause::SourceEvicted,
        Cause::SourceCleared,
        Cause::Rejected,
        Cause::PrefillFailed,
        Cause::LoadFailed,
        Cause::Incompatible,
        Cause::Superseded,
        Cause::Other,
    ];

    /// Its name in requests, answers and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Cause::Cancelled => "cancelled",
            Cause::ClientGone => "client_gone",
            Cause::NeverStarted => "never_started",
            Cause::PrefillTooSlow => "prefill_too_slow",
            Cause::NeverPulled => "never_pulled",
            Cause::LeaseExpired => "lease_expired",
            Cause::PullTooSlow => "pull_too_slow",
            Cause::TooLate => "too_late",
            Cause::SourceGone => "source_gone",
            Cause::DestinationGone => "destination_gone",
            Cause::SourceRestarted => "source_restarted",
            Cause::DestinationRestarted => "destination_restarted",
            Cause::SourceEvicted => "source_evicted",
            Cause::SourceCleared => "source_cleared",
            Cause::Rejected => "rejected",
            Cause::PrefillFailed => "prefill_failed",
            Cause::LoadFailed => "load_failed",
            Cause::Incompatible => "incompatible",
            Cause::Superseded => "superseded",
            Cause::Other => "other",
        }
    }

    /// The cause of that name; what kvd has no name for is [`Cause::Other`].
    pub fn from_name(name: &str) -> Cause {
        Cause::ALL.into_iter().find(|c| c.name() == name).unwrap_or(Cause::Other)
    }

    /// Whether it is only this ledger's clock that says so. Another owner may have heard more.
    pub fn by_time(self) -> bool {
        match self {
            Cause::NeverStarted
            | Cause::PrefillTooSlow
            | Cause::NeverPulled
            | Cause::LeaseExpired
            | Cause::PullTooSlow
            | Cause::TooLate => true,
            Cause::Cancelled
            | Cause::ClientGone
            | Cause::SourceGone
            | Cause::DestinationGone
            | Cause::SourceRestarted
            | Cause::DestinationRestarted
            | Cause::SourceEvicted
            | Cause::SourceCleared
            | Cause::Rejected
            | Cause::PrefillFailed
            | Cause::LoadFailed
            | Cause::Incompatible
            | Cause::Superseded
            | Cause::Other => false,
        }
    }

    /// Whether the blocks of a finished prefill are gone with it.
    pub fn takes_the_blocks(self) -> bool {
        match self {
            Cause::SourceGone
            | Cause::SourceRestarted
            | Cause::SourceEvicted
            | Cause::SourceCleared
            | Cause::LeaseExpired
            | Cause::PrefillFailed
            | Cause::PrefillTooSlow
            | Cause::Superseded => true,
            Cause::Cancelled
            | Cause::ClientGone
            | Cause::NeverStarted
            | Cause::NeverPulled
            | Cause::PullTooSlow
            | Cause::TooLate
            | Cause::DestinationGone
            | Cause::DestinationRestarted
            | Cause::Rejected
            | Cause::LoadFailed
            | Cause::Incompatible
            | Cause::Other => false,
        }
    }
}

impl TransferId {
    /// The name of transfer `number` of a request.
    pub fn new(request_id: &str, number: u64) -> TransferId {
        TransferId { request: xxh3_64(request_id.as_bytes()), number }
    }

    /// As stores call it: request, then number, big-endian.
    pub fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.request.to_be_bytes());
        bytes[8..].copy_from_slice(&self.number.to_be_bytes());
        bytes
    }

    /// The transfer that [`bytes`](Self::bytes) are of; `None` where they are not so many.
    pub fn from_bytes(bytes: &[u8]) -> Option<TransferId> {
        let both = u128::from_be_bytes(bytes.try_into().ok()?);
        Some(TransferId { request: (both >> 64) as u64, number: both as u64 })
    }
}

impl fmt::Display for TransferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:016x}", self.request, self.number)
    }
}

impl FromStr for TransferId {
    type Err = ();

    fn from_str(text: &str) -> Result<TransferId, ()> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(());
        }
        let half = |s: &str| u64::from_str_radix(s, 16).map_err(|_| ());
        Ok(TransferId { request: half(&text[..16])?, number: half(&text[16..])? })
    }
}
