//! What do live transfers take up, and does one more fit?
//!
//! What a transfer takes follows from its record alone ([`Claim::of`]). Whoever changes a record
//! exchanges the old claim for the new one, so that nothing is released twice or forgotten.

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::record::Record;
use crate::transfer::types::{Caps, Choice, Endpoint, Flow, Reserved};

/// What one transfer takes up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// From, to, bytes under way, bytes that `from` keeps.
    legs: SmallVec<[(Endpoint, Endpoint, u64, u64); 2]>,
    /// Who prefills, and how many tokens.
    prefill: Option<(Endpoint, u64)>,
}

/// The limit that a claim does not fit under.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// Of transfers read from a pod.
    #[error("{pod} is read by {limit} transfers already")]
    Source {
        /// The pod.
        pod: Endpoint,
        /// The limit.
        limit: u32,
    },
    /// Of transfers written to a pod.
    #[error("{pod} is written by {limit} transfers already")]
    Destination {
        /// The pod.
        pod: Endpoint,
        /// The limit.
        limit: u32,
    },
    /// Of bytes over a link.
    #[error("the link from {from} to {to} takes no {bytes} more bytes")]
    Link {
        /// Read from.
        from: Endpoint,
        /// Written to.
        to: Endpoint,
        /// What was wanted.
        bytes: u64,
    },
    /// Of bytes that a pod keeps for others.
    #[error("{pod} keeps no {bytes} more bytes")]
    Pinned {
        /// The pod.
        pod: Endpoint,
        /// What was wanted.
        bytes: u64,
    },
    /// Of prefills for others.
    #[error("{pod} runs {limit} prefills for others already")]
    Prefills {
        /// The pod.
        pod: Endpoint,
        /// The limit.
        limit: u32,
    },
}

/// What all live transfers take up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reservations {
    links: FxHashMap<(Endpoint, Endpoint), Flow>,
    pods: FxHashMap<Endpoint, Reserved>,
}

impl Claim {
    /// What `record` takes up now: nothing once it is over.
    pub fn of(record: &Record) -> Claim {
        if !record.live() {
            return Claim::default();
        }
        Claim::of_choice(&record.choice, record.prefill_done)
    }

    fn of_choice(choice: &Choice, prefill_done: bool) -> Claim {
        let Choice { prefill, legs, prefill_tokens, .. } = choice;
        let legs = legs.iter().map(|l| (l.from.clone(), l.to.clone(), l.bytes, l.pinned_bytes)).collect();
        let prefill = prefill.clone().filter(|_| !prefill_done).map(|p| (p, u64::from(*prefill_tokens)));
        Claim { legs, prefill }
    }
}

impl Reservations {
    /// Whether `claim` exceeds nothing on top of all others.
    ///
    /// # Errors
    /// The first limit that it would exceed.
    pub fn fits(&self, claim: &Claim, caps: &Caps) -> Result<(), Full> {
        let mut with = Reservations::default();
        // Only what the claim touches is copied; the two legs of one claim may meet on a pod.
        for (from, to, ..) in &claim.legs {
            for pod in [from, to] {
                with.pods.insert(pod.clone(), self.pod(pod));
            }
            with.links.insert((from.clone(), to.clone()), self.link(from, to));
        }
        if let Some((pod, _)) = &claim.prefill {
            with.pods.insert(pod.clone(), self.pod(pod));
        }
        with.take(claim);
        for (from, to, bytes, pinned) in &claim.legs {
            let (source, destination) = (with.pod(from), with.pod(to));
            if source.egress.transfers > caps.transfers_per_source {
                return Err(Full::Source { pod: from.clone(), limit: caps.transfers_per_source });
            }
            if destination.ingress.transfers > caps.transfers_per_destination {
                return Err(Full::Destination { pod: to.clone(), limit: caps.transfers_per_destination });
            }
            if with.link(from, to).bytes > caps.bytes_per_link {
                return Err(Full::Link { from: from.clone(), to: to.clone(), bytes: *bytes });
            }
            if source.pinned_bytes > caps.pinned_bytes_per_pod {
                return Err(Full::Pinned { pod: from.clone(), bytes: *pinned });
            }
        }
        match &claim.prefill {
            Some((pod, _)) if with.pod(pod).prefills > caps.prefills_per_pod => {
                Err(Full::Prefills { pod: pod.clone(), limit: caps.prefills_per_pod })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Takes what `claim` says.
    pub fn take(&mut self, claim: &Claim) {
        for (from, to, bytes, pinned) in &claim.legs {
            let flow = self.links.entry((from.clone(), to.clone())).or_default();
            *flow = plus(*flow, *bytes);
            let source = self.pods.entry(from.clone()).or_default();
            source.egress = plus(source.egress, *bytes);
            source.pinned_bytes = source.pinned_bytes.saturating_add(*pinned);
            let destination = self.pods.entry(to.clone()).or_default();
            destination.ingress = plus(destination.ingress, *bytes);
        }
        if let Some((pod, tokens)) = &claim.prefill {
            let pod = self.pods.entry(pod.clone()).or_default();
            pod.prefills += 1;
            pod.prefill_tokens = pod.prefill_tokens.saturating_add(*tokens);
        }
    }

    /// Gives back what [`take`](Self::take) took for the same claim.
    pub fn release(&mut self, claim: &Claim) {
        for (from, to, bytes, pinned) in &claim.legs {
            let key = (from.clone(), to.clone());
            let flow = self.links.get_mut(&key).expect("a claim is taken before it is released");
            *flow = minus(*flow, *bytes);
            if *flow == Flow::default() {
                self.links.remove(&key);
            }
            self.change(from, |pod| {
                pod.egress = minus(pod.egress, *bytes);
                pod.pinned_bytes -= pinned;
            });
            self.change(to, |pod| pod.ingress = minus(pod.ingress, *bytes));
        }
        if let Some((pod, tokens)) = &claim.prefill {
            self.change(pod, |pod| {
                pod.prefills -= 1;
                pod.prefill_tokens -= tokens;
            });
        }
    }

    fn change(&mut self, pod: &Endpoint, change: impl FnOnce(&mut Reserved)) {
        let reserved = self.pods.get_mut(pod).expect("a claim is taken before it is released");
        change(reserved);
        if *reserved == Reserved::default() {
            self.pods.remove(pod);
        }
    }

    /// What is taken up on `pod`.
    pub fn pod(&self, pod: &Endpoint) -> Reserved {
        self.pods.get(pod).copied().unwrap_or_default()
    }

    /// What is under way from `from` to `to`.
    pub fn link(&self, from: &Endpoint, to: &Endpoint) -> Flow {
        // A key borrowed from two endpoints would save the clones, which are two counters.
        self.links.get(&(from.clone(), to.clone())).copied().unwrap_or_default()
    }

    /// Every link in use.
    pub fn links(&self) -> impl Iterator<Item = (&Endpoint, &Endpoint, Flow)> {
        self.links.iter().map(|((from, to), flow)| (from, to, *flow))
    }

    /// Every pod on which something is taken up.
    pub fn pods(&self) -> impl Iterator<Item = (&Endpoint, &Reserved)> {
        self.pods.iter()
    }

    /// Whether nothing is taken up at all.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty() && self.pods.is_empty()
    }
}

fn plus(flow: Flow, bytes: u64) -> Flow {
    Flow { transfers: flow.transfers + 1, bytes: flow.bytes.saturating_add(bytes) }
}

fn minus(flow: Flow, bytes: u64) -> Flow {
    Flow { transfers: flow.transfers - 1, bytes: flow.bytes - bytes }
}
