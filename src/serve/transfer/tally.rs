//! What came of transfers, in numbers? Names and units are in [`crate::metrics`].

use std::sync::Arc;
use std::time::Duration;

use kvproto::Tier;
use rustc_hash::FxHashMap;

use crate::serve::Histogram;
use crate::transfer::ledger::{Cause, News, Notice, State};
use crate::transfer::types::{Connector, Decision, Endpoint, Reason};

/// Pods and zones that are told apart; what comes after is counted as `other`.
const MAX_LABELS: usize = 4096;

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Tally {
    /// Plans by what was decided and why.
    pub plans: FxHashMap<(Decision, Reason), u64>,
    /// From a request to its plan.
    pub plan_seconds: Histogram,
    /// Transfers that ended, by how, how blocks travelled, and why.
    pub ended: FxHashMap<(State, Connector, Option<Cause>), u64>,
    /// Time spent in planned, prefilling, ready and pulling.
    pub stages: [Spread; 4],
    /// Bytes moved, by zones and tier.
    pub bytes: FxHashMap<(Arc<str>, Arc<str>, &'static str), u64>,
    /// Bytes times seconds that blocks were kept for nobody.
    pub stranded: FxHashMap<Arc<str>, f64>,
    /// Measured over expected time.
    pub estimate_error: Spread,
    /// Leases that ran out before anyone pulled.
    pub lease_expired: u64,
    /// Plans in place of others.
    pub replans: u64,
    /// Plans that the index found stale.
    pub stale: u64,
    /// Transfers taken over from a token.
    pub adopted: u64,
    /// Reports that changed nothing.
    pub unapplied: u64,
    /// Calls that another replica answered.
    pub forwarded: u64,
    /// News that watchers lost.
    pub lost_news: u64,
}

/// Values in buckets.
#[derive(Clone, Debug, Default)]
pub struct Spread {
    buckets: [u64; Spread::BOUNDS.len()],
    /// All values.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
}

impl Spread {
    /// Upper bounds, ascending.
    pub const BOUNDS: [f64; 14] =
        [0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 1.25, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0];

    /// Counts `value`.
    pub fn observe(&mut self, value: f64) {
        if let Some(at) = Self::BOUNDS.iter().position(|b| value <= *b) {
            self.buckets[at] += 1;
        }
        self.count += 1;
        self.sum += value;
    }

    /// How many values were at most each bound.
    pub fn cumulative(&self) -> [u64; Spread::BOUNDS.len()] {
        let mut sum = 0;
        self.buckets.map(|n| {
            sum += n;
            sum
        })
    }
}

impl Tally {
    /// A plan was made.
    pub(super) fn planned(&mut self, decision: Decision, reason: Reason) {
        *self.plans.entry((decision, reason)).or_default() += 1;
    }

    /// Blocks that nobody came for are free.
    pub(super) fn unstranded(&mut self, pod: &Endpoint, byte_millis: u128) {
        let label = limited(&self.stranded, &pod.instance);
        *self.stranded.entry(label).or_default() += byte_millis as f64 / 1e3;
    }

    /// Something happened to a transfer.
    pub(super) fn heard(&mut self, news: &News) {
        match news.notice {
            Notice::Stale => self.stale += 1,
            Notice::Stranded | Notice::LeaseEnding => {}
            Notice::State => self.changed(news),
        }
    }

    fn changed(&mut self, news: &News) {
        let record = &news.record;
        if let Some(before) = &news.before {
            let stage = match before.state {
                State::Planned => Some(0),
                State::Prefilling => Some(1),
                State::Ready => Some(2),
                State::Pulling => Some(3),
                State::Done | State::Failed | State::Expired | State::Cancelled | State::Superseded => None,
            };
            if let Some(stage) = stage {
                let ms = record.changed_at.saturating_sub(before.changed_at);
                self.stages[stage].observe(ms as f64 / 1e3);
            }
            self.replans += u64::from(record.attempt > before.attempt);
        }
        if !record.live() && !record.choice.legs.is_empty() {
            *self.ended.entry((record.state, record.connector, record.cause)).or_default() += 1;
            self.lease_expired += u64::from(record.cause == Some(Cause::LeaseExpired));
        }
    }

    /// A transfer ended well: its bytes moved between these zones.
    pub(super) fn moved(&mut self, from: Option<Arc<str>>, to: Option<Arc<str>>, tier: Tier, bytes: u64) {
        let unknown = || Arc::from("unknown");
        let mut key = (from.unwrap_or_else(unknown), to.unwrap_or_else(unknown), tier.name());
        if self.bytes.len() >= MAX_LABELS && !self.bytes.contains_key(&key) {
            key = ("other".into(), "other".into(), tier.name());
        }
        *self.bytes.entry(key).or_default() += bytes;
    }

    /// What moving took, against what was expected.
    pub(super) fn measured(&mut self, expected: Duration, took: Duration) {
        if !expected.is_zero() {
            self.estimate_error.observe(took.as_secs_f64() / expected.as_secs_f64());
        }
    }
}

fn limited(known: &FxHashMap<Arc<str>, f64>, label: &Arc<str>) -> Arc<str> {
    if known.len() < MAX_LABELS || known.contains_key(label) { Arc::clone(label) } else { "other".into() }
}
