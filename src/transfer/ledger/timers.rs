//! How long may a transfer stay in a state?

use std::time::Duration;

use super::record::{Millis, Record, State};
use crate::transfer::types::{Choice, Connector, Estimate};

/// Times of the state machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// From a plan until someone begins.
    pub planned: Duration,
    /// For prefill at least.
    pub prefilling: Duration,
    /// For prefill, as a multiple of its estimate.
    pub prefill_factor: u32,
    /// From the end of prefill until the request is with the decode pod, unless renewed.
    pub ready: Duration,
    /// How long before the end of the engine's lease a transfer counts as lost. For leases that are
    /// short, a quarter of them.
    pub guard: Duration,
    /// For moving at least.
    pub pulling: Duration,
    /// For moving, as a multiple of its estimate.
    pub pull_factor: u32,
    /// For everything at least.
    pub overall: Duration,
    /// How long what is over is remembered.
    pub kept: Duration,
    /// Plans of one transfer.
    pub max_attempts: u32,
    /// Leases of NIXL where the engine's answer does not say.
    pub nixl_lease: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Timers {
            planned: Duration::from_secs(5),
            prefilling: Duration::from_secs(30),
            prefill_factor: 3,
            ready: Duration::from_secs(2),
            guard: Duration::from_secs(2),
            pulling: Duration::from_secs(10),
            pull_factor: 5,
            overall: Duration::from_secs(120),
            kept: Duration::from_secs(600),
            max_attempts: 3,
            nixl_lease: Duration::from_secs(30),
        }
    }
}

impl Timers {
    /// When `state` ends by itself if it begins at `now`, not looking at the whole.
    pub fn deadline(&self, state: State, choice: &Choice, lease_ends: Option<Millis>, now: Millis) -> Millis {
        let Estimate { queue, pull, prefill, setup, handover, .. } = choice.estimate;
        match state {
            State::Planned => after(now, self.planned),
            State::Prefilling => {
                // The prefill pod waits, pulls what it lacks and computes: all of it is in here.
                let expected = queue + pull + setup + prefill;
                after(now, self.prefilling.max(expected.saturating_mul(self.prefill_factor)))
            }
            State::Ready => {
                let patience = after(now, self.ready);
                lease_ends.map_or(patience, |ends| patience.min(self.guarded(ends, now)))
            }
            State::Pulling => {
                let expected = if handover.is_zero() { pull } else { handover } + setup;
                after(now, self.pulling.max(expected.saturating_mul(self.pull_factor)))
            }
            State::Done | State::Failed | State::Expired | State::Cancelled | State::Superseded => 0,
        }
    }

    /// When all of it ends, planned at `now`.
    pub fn overall(&self, choice: &Choice, now: Millis) -> Millis {
        let longest = [State::Planned, State::Prefilling, State::Ready, State::Pulling]
            .into_iter()
            .fold(0u64, |sum, state| sum.saturating_add(self.deadline(state, choice, None, now) - now));
        now.saturating_add(longest.max(millis(self.overall)))
    }

    /// The moment before the end of a lease at which it can no longer be counted on.
    pub fn guarded(&self, ends: Millis, now: Millis) -> Millis {
        let left = ends.saturating_sub(now);
        ends - millis(self.guard).min(left / 4)
    }

    /// How long an engine keeps the blocks of a finished prefill where it does not say.
    pub fn lease(&self, connector: Connector) -> Duration {
        match connector {
            Connector::NixlPull | Connector::NixlPush => self.nixl_lease,
            Connector::Mooncake => Duration::from_secs(480),
            Connector::Offloading => Duration::from_secs(60),
            Connector::Sglang => Duration::from_secs(300),
        }
    }

    /// By how much a heartbeat extends it where the caller does not say.
    pub fn extension(&self, connector: Connector) -> Duration {
        match connector {
            Connector::NixlPull | Connector::NixlPush => self.nixl_lease * 2 / 3,
            Connector::Mooncake | Connector::Offloading | Connector::Sglang => self.lease(connector),
        }
    }

    /// When `record` has to be looked at next; `None` = nothing of it ends any more.
    pub fn due(&self, record: &Record) -> Option<Millis> {
        let state = record
            .live()
            .then(|| record.deadline.min(record.overall).min(self.warn_at(record).unwrap_or(Millis::MAX)));
        let strand = record.strand.as_ref().map(|s| s.until);
        state.into_iter().chain(strand).min()
    }

    /// When a watcher has to be told that the lease ends while blocks are still moved.
    pub fn warn_at(&self, record: &Record) -> Option<Millis> {
        let unattended = record.state == State::Pulling && !heartbeats(record.connector);
        record
            .lease_ends
            .filter(|_| unattended && !record.warned)
            .map(|ends| self.guarded(ends, record.changed_at))
    }
}

/// Whether the decode pod keeps the lease alive by itself once it has the request.
pub fn heartbeats(connector: Connector) -> bool {
    match connector {
        Connector::NixlPull | Connector::NixlPush => true,
        Connector::Mooncake | Connector::Offloading | Connector::Sglang => false,
    }
}

/// `now` and `more`.
pub fn after(now: Millis, more: Duration) -> Millis {
    now.saturating_add(millis(more))
}

/// As a length of the ledger's time.
pub fn millis(d: Duration) -> Millis {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX / 2).min(u64::MAX / 2)
}
