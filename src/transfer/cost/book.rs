//! What pods and links have been seen to cost.
//!
//! Begins with the values of [`Starting`] and follows what is reported. A pod that nobody has
//! reported on costs what the others do; a link, what its distance suggests.

use std::hash::{Hash, Hasher};
use std::time::Duration;

use super::ewma::Ewma;
use super::table::Table;
use crate::transfer::types::{Distance, Endpoint, Lesson};

/// How long work counts towards how busy a pod is, seconds.
const BUSY_OVER: f64 = 20.0;
/// A pod never counts as busier than this: the price of waiting would have no bound.
const BUSIEST: f64 = 0.95;
/// How fast the share of failures follows.
const FAIL_FOLLOW: f64 = 0.1;
/// Nothing is believed to be faster, bytes a second, or to take longer, seconds.
const SANE_BYTES: (f64, f64) = (1e5, 1e13);
const SANE_SECONDS: f64 = 3600.0;

/// What things are taken to cost before anything is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Starting {
    /// Seconds to compute one token at the start of a prompt.
    pub token_s: f64,
    /// Seconds that every prefill takes besides.
    pub overhead_s: f64,
    /// Bytes per second by [`Distance`]: host, rack, zone, region, farther.
    pub bytes_per_s: [f64; 5],
    /// Seconds before the first byte, likewise.
    pub setup_s: [f64; 5],
    /// Seconds that a pair's first contact takes.
    pub handshake_s: f64,
    /// Bytes per second from host memory or disk into the GPU of the same pod.
    pub load_bytes_per_s: f64,
    /// Part of the transfers that fail.
    pub failures: f64,
}

impl Default for Starting {
    /// An 8B model on an H100, NVLink within a host, 200 Gb/s RDMA in a rack and zone, and
    /// 25 Gb/s Ethernet beyond. Where they come from is in `docs/transfers.md`.
    fn default() -> Self {
        Starting {
            token_s: 0.2e-3,
            overhead_s: 0.015,
            bytes_per_s: [300e9, 20e9, 20e9, 2.5e9, 2.5e9],
            setup_s: [0.3e-3, 1e-3, 2e-3, 5e-3, 10e-3],
            handshake_s: 5.0,
            load_bytes_per_s: 25e9,
            failures: 0.002,
        }
    }
}

/// What computing costs on one pod.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PodCost {
    /// Seconds to compute one token at the start of a prompt.
    pub token_s: f64,
    /// Seconds that every prefill takes besides.
    pub overhead_s: f64,
    /// Part of its time that it lately computed prefills.
    pub busy: f64,
}

/// What moving costs from one pod to another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkCost {
    /// Bytes per second of one transfer that has the link to itself.
    pub bytes_per_s: f64,
    /// Seconds before the first byte, first contact included where that is still to come.
    pub setup_s: f64,
    /// Part of the transfers that fail.
    pub failures: f64,
    /// Whether the two have worked together since either began.
    pub warm: bool,
}

/// What was seen of one link.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// Read from.
    pub from: Endpoint,
    /// Written to.
    pub to: Endpoint,
    bytes_per_s: Option<Ewma>,
    setup_s: Option<Ewma>,
    failures: f64,
    /// Whether the two have worked together since either began.
    pub warm: bool,
    /// Transfers that went well.
    pub transfers: u64,
    /// Transfers that did not.
    pub failed: u64,
}

impl Pair {
    /// Bytes per second of one transfer alone, where it was seen.
    pub fn bytes_per_s(&self) -> Option<f64> {
        self.bytes_per_s.map(Ewma::mean)
    }

    /// Seconds before the first byte, where they were seen.
    pub fn setup_s(&self) -> Option<f64> {
        self.setup_s.map(Ewma::mean)
    }
}

/// What was seen of one pod.
#[derive(Clone, Copy, Debug)]
struct Pod {
    token_s: Ewma,
    /// Seconds of work lately, as of `at`; it fades with [`BUSY_OVER`].
    work_s: f64,
    at: f64,
}

/// Short for an endpoint where many are looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PodId(u64);

impl PodId {
    /// The id of `endpoint`. Endpoints come from registrations, not from requests, so nobody
    /// gains by looking for two with one id; such two would share their costs and nothing else.
    pub fn of(endpoint: &Endpoint) -> PodId {
        let mut hasher = xxhash_rust::xxh3::Xxh3Default::new();
        endpoint.hash(&mut hasher);
        PodId(hasher.finish())
    }
}

/// What was learnt of all pods and links.
#[derive(Clone, Debug)]
pub struct CostBook {
    starting: Starting,
    pods: Table<PodId, Pod>,
    pairs: Table<(PodId, PodId), Pair>,
    /// Over all pods, for those of which nothing is known.
    token_s: Ewma,
    handshake_s: Ewma,
}

impl CostBook {
    /// A book that remembers at most so many pods and links.
    pub fn new(starting: Starting, pods: usize, links: usize) -> CostBook {
        CostBook {
            token_s: Ewma::new(starting.token_s),
            handshake_s: Ewma::new(starting.handshake_s),
            pods: Table::new(pods),
            pairs: Table::new(links),
            starting,
        }
    }

    /// What computing costs on `pod`, `now` being the time since any one moment.
    pub fn pod(&self, pod: PodId, now: Duration) -> PodCost {
        let known = self.pods.get(&pod);
        let busy = known.map_or(0.0, |p| p.work_s * fade(now.as_secs_f64() - p.at) / BUSY_OVER);
        PodCost {
            token_s: known.filter(|p| p.token_s.seen() > 0).map_or(self.token_s, |p| p.token_s).mean(),
            overhead_s: self.starting.overhead_s,
            busy: busy.min(BUSIEST),
        }
    }

    /// What moving costs between two pods so far apart.
    pub fn link(&self, from: PodId, to: PodId, distance: Distance) -> LinkCost {
        let place = distance as usize;
        let pair = self.pairs.get(&(from, to));
        let warm = pair.is_some_and(|p| p.warm);
        let known = |m: Option<Option<Ewma>>, start: f64| m.flatten().map_or(start, Ewma::mean);
        let setup_s = known(pair.map(|p| p.setup_s), self.starting.setup_s[place]);
        LinkCost {
            bytes_per_s: known(pair.map(|p| p.bytes_per_s), self.starting.bytes_per_s[place]),
            setup_s: if warm { setup_s } else { setup_s + self.handshake_s.mean() },
            failures: pair.map_or(self.starting.failures, |p| p.failures),
            warm,
        }
    }

    /// Bytes per second into the GPU from a pod's own lower tiers.
    pub fn load_bytes_per_s(&self) -> f64 {
        self.starting.load_bytes_per_s
    }

    /// What was seen of one link.
    pub fn pair(&self, from: &Endpoint, to: &Endpoint) -> Option<&Pair> {
        self.pairs.get(&(PodId::of(from), PodId::of(to)))
    }

    /// Every link that was ever reported on.
    pub fn pairs(&self) -> impl Iterator<Item = &Pair> {
        self.pairs.iter().map(|(_, p)| p)
    }

    /// Takes in what a transfer taught; `parity` is the model's
    /// [`attention_parity`](super::Geometry::attention_parity).
    pub fn learn(&mut self, lesson: &Lesson, parity: f64, now: Duration) {
        match lesson {
            Lesson::Prefilled { pod, model: _, tokens, cached, took } => {
                let work =
                    (*tokens as f64) * (1.0 + (2.0 * *cached as f64 + *tokens as f64) / (2.0 * parity));
                self.prefilled(PodId::of(pod), work, took.as_secs_f64(), now.as_secs_f64());
            }
            Lesson::Moved { from, to, bytes, took, sharing } => {
                self.moved(from, to, *bytes as f64, took.as_secs_f64(), f64::from((*sharing).max(1)));
            }
            Lesson::Failed { from, to } => {
                let pair = self.pair_mut(from, to);
                pair.failed += 1;
                pair.failures += FAIL_FOLLOW * (1.0 - pair.failures);
            }
            Lesson::Restarted { pod } => {
                self.pairs.retain(|_, p| p.from != *pod && p.to != *pod);
                self.pods.entry(&PodId::of(pod), || unknown(self.token_s)).work_s = 0.0;
            }
            Lesson::Measured { from, to, bytes_per_second, setup } => {
                let pair = self.pair_mut(from, to);
                let bytes = (*bytes_per_second as f64).clamp(SANE_BYTES.0, SANE_BYTES.1);
                // A measurement of the link itself is worth more than what was inferred.
                pair.bytes_per_s = Some(Ewma::new(bytes));
                pair.setup_s = Some(Ewma::new(setup.as_secs_f64().clamp(1e-6, SANE_SECONDS)));
            }
        }
    }

    fn prefilled(&mut self, pod: PodId, work: f64, took_s: f64, now_s: f64) {
        if work < 1.0 || !(0.0..SANE_SECONDS).contains(&took_s) {
            return;
        }
        let mean = self.token_s;
        let overhead_s = self.starting.overhead_s;
        let pod = self.pods.entry(&pod, || unknown(mean));
        // Reports may come late or out of order; work does not fade backwards.
        pod.work_s = pod.work_s * fade(now_s - pod.at) + took_s;
        pod.at = pod.at.max(now_s);
        // What is over in little more than the overhead says little about tokens.
        if took_s > 2.0 * overhead_s {
            let per_token = (took_s - overhead_s) / work;
            pod.token_s.add(per_token);
            self.token_s.add(per_token);
        }
    }

    fn moved(&mut self, from: &Endpoint, to: &Endpoint, bytes: f64, took_s: f64, sharing: f64) {
        if !(0.0..SANE_SECONDS).contains(&took_s) {
            return;
        }
        let (usual_setup, handshake_s) =
            (self.starting.setup_s[Distance::Zone as usize], self.handshake_s.mean());
        let pair = self.pair_mut(from, to);
        pair.transfers += 1;
        pair.failures *= 1.0 - FAIL_FOLLOW;
        let first = !std::mem::replace(&mut pair.warm, true);
        let setup_s = pair.setup_s.map_or(usual_setup, Ewma::mean);
        if first {
            // Mostly first contact; it says nothing reliable about the link.
            if took_s > 0.2 * handshake_s {
                self.handshake_s.add(took_s);
            }
        } else if took_s > 2.0 * setup_s {
            let rate = (bytes * sharing / (took_s - setup_s)).clamp(SANE_BYTES.0, SANE_BYTES.1);
            pair.bytes_per_s.get_or_insert(Ewma::new(rate)).add(rate);
        } else if sharing < 2.0 {
            pair.setup_s.get_or_insert(Ewma::new(setup_s)).add(took_s);
        }
    }

    fn pair_mut(&mut self, from: &Endpoint, to: &Endpoint) -> &mut Pair {
        let failures = self.starting.failures;
        self.pairs.entry(&(PodId::of(from), PodId::of(to)), || Pair {
            from: from.clone(),
            to: to.clone(),
            bytes_per_s: None,
            setup_s: None,
            failures,
            warm: false,
            transfers: 0,
            failed: 0,
        })
    }
}

fn unknown(mean: Ewma) -> Pod {
    Pod { token_s: Ewma::new(mean.mean()), work_s: 0.0, at: 0.0 }
}

/// How much of work done `seconds` ago still counts.
fn fade(seconds: f64) -> f64 {
    (-seconds.max(0.0) / BUSY_OVER).exp()
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
